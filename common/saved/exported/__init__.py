"""An adapter taken elsewhere: peft, a merged backbone with its head, ONNX; each compared first."""
