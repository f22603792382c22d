"""The file, both ways: range coder, adaptive models, tensors, layout, container, and the report of its sizes."""
