// The kernels for AVX-512; setup.py compiles this file with the flags of that instruction set.
#include "msda_cpu_kernel.h"

XDEC_DEFINE_MSDA_KERNELS(msda_kernels_avx512, "avx512")
