"""The plan format, the op registry, and the checker that types a plan before it runs. Torch-free."""
