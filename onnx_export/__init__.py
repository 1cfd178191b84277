"""ONNX export, parity, snapshot store, and the scoring server."""
