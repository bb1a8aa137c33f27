/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#include <linux/pci.h>

int standin_add(struct pci_dev *pci);
void standin_remove(struct pci_dev *pci);
