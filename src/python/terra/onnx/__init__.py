"""Programs import it to offer an export; there is none here, and each name says so."""


def __getattr__(name):
    raise AttributeError(f"module 'torch.onnx' has no attribute '{name}': not in Terra's subset yet")
