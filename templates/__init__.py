"""CUDA and C++ sources that the compiler assembles: device headers, kernel skeletons, host launcher."""
