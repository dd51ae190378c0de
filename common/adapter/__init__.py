"""What is trained beside it: state, LoRA factors, biases, residuals, layer rates."""
