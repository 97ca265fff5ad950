"""What must survive a broker: mailboxes, result records, the tag index, the device registry, blobs."""
