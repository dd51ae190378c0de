"""What a trainer is (three questions), Flower's handlers, the gRPC form of it; imports no torch."""
