"""The C++ kernels of the CPU, and how they are compiled for the machine at hand."""
