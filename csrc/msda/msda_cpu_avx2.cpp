// The kernels for AVX2 with FMA; setup.py compiles this file with the flags of that set.
#include "msda_cpu_kernel.h"

XDEC_DEFINE_MSDA_KERNELS(msda_kernels_avx2, "avx2")
