"""Plans for devices without torch: a plan graph as an ONNX model.

`translate` writes the model, `make_variant` also runs it against torch before it may be stored. See docs/runtimes.md.
"""
