// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* A stand-in for Google's driver, for tests: see gasket_core.c. */
#include <linux/module.h>
#include <linux/pci.h>

#include "standin.h"

static int apex_probe(struct pci_dev *pci, const struct pci_device_id *id)
{
	int failed = pcim_enable_device(pci);

	return failed ? failed : standin_add(pci);
}

static void apex_remove(struct pci_dev *pci)
{
	standin_remove(pci);
}

static const struct pci_device_id ids[] = { { PCI_DEVICE(0x1ac1, 0x089a) }, { 0 } };
MODULE_DEVICE_TABLE(pci, ids);

static struct pci_driver apex_driver = {
	.name = "apex",
	.id_table = ids,
	.probe = apex_probe,
	.remove = apex_remove,
};
module_pci_driver(apex_driver);
MODULE_DESCRIPTION("A stand-in for Google's apex, for tests");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.standin");
