"""Generic Triton kernels that take the cell as a constexpr ``@triton.jit`` function."""
