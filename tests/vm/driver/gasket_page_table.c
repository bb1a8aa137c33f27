// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* A stand-in for Google's driver, for tests: see gasket_core.c. */
#include <linux/module.h>
#include <linux/version.h>

#if __has_include(<linux/dma-buf.h>)
MODULE_IMPORT_NS(DMA_BUF);
#endif

MODULE_LICENSE("GPL");
