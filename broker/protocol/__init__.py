"""The language that coordinator, broker and agents speak: messages, framing, tensor codec, ids, errors, streams."""
