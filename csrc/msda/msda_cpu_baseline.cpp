// The kernels for any x86-64 (SSE2) or AArch64 (NEON) processor, without special flags.
#include "msda_cpu_kernel.h"

XDEC_DEFINE_MSDA_KERNELS(msda_kernels_baseline, "baseline")
