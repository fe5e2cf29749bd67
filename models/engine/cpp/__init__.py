"""A whole KAN layer in C++ on a CPU: `kernels.py` calls what `build.py` compiles."""
