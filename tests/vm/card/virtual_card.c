// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A PCI bus of its own with Edge TPU cards on it, for tests: 1ac1:089a, with their config space in
 * this module and BAR 2 in memory that the kernel was told to leave alone ("mem=1472M" of 1536).
 *
 * Registers are memory. A thread answers as the chip would where Google's driver waits for it, so
 * that this driver probes, opens and closes the card. Nothing is ever computed.
 */
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/version.h>

#define CARDS_MAX 2
#define BAR_BYTES 0x100000
#define CONFIG_BYTES 256

#define AT_BAR2 PCI_BASE_ADDRESS_2
#define AT_PM 0x40
#define AT_MSIX 0x50
#define VECTORS 16

/* Where the driver looks, in BAR 2. */
#define DMA_PAUSED 0x486e0
#define PAGE_TABLE_INIT 0x46078
#define MSIX_TABLE_INIT 0x46080
#define SCU_2 0x1a314
#define SCU_3 0x1a318
#define TEMPERATURE 0x1a0dc
#define MSIX_TABLE 0x46800
#define MSIX_PENDING 0x46068

#define AT_45_DEGREES (484 << 16) /* as the chip's converter says it */
#define RAM_OFF BIT(6)
#define IN_RESET BIT(4)
#define FORCE_RAM_OFF (3 << 14)
#define FORCE_RESET_MASK (3 << 2)
#define FORCE_RESET (1 << 2)

static ulong base = 0x5f000000;
module_param(base, ulong, 0444);
MODULE_PARM_DESC(base, "physical address of memory that nobody uses, 1 MiB a card");
static int cards = 1;
module_param(cards, int, 0444);
MODULE_PARM_DESC(cards, "how many cards there are: 1 or 2");

static u8 config[CARDS_MAX][CONFIG_BYTES];
static void __iomem *bars[CARDS_MAX];
static struct task_struct *chip;
static struct pci_bus *bus;
static struct resource window = { .name = "virtual card", .flags = IORESOURCE_MEM };
static struct resource numbers = { .name = "virtual bus", .flags = IORESOURCE_BUS, .start = 0, .end = 0 };
static struct pci_sysdata sysdata = { .domain = 0x1ac1, .node = NUMA_NO_NODE };

static void put(int card, int where, int size, u32 value)
{
	memcpy(&config[card][where], &value, size); /* both are little-endian */
}

static void make_card(int card)
{
	put(card, PCI_VENDOR_ID, 2, 0x1ac1);
	put(card, PCI_DEVICE_ID, 2, 0x089a);
	put(card, PCI_STATUS, 2, PCI_STATUS_CAP_LIST);
	/* The chip says "class 0xff, unassigned" too; the driver mends it. */
	put(card, PCI_CLASS_REVISION, 4, 0x0000ff00 << 8);
	put(card, PCI_SUBSYSTEM_VENDOR_ID, 4, 0x089a1ac1);
	put(card, PCI_CAPABILITY_LIST, 1, AT_PM);
	put(card, AT_PM, 4, PCI_CAP_ID_PM | AT_MSIX << 8 | 3 << 16);
	put(card, AT_MSIX, 4, PCI_CAP_ID_MSIX | (VECTORS - 1) << 16);
	put(card, AT_MSIX + PCI_MSIX_TABLE, 4, MSIX_TABLE | 2);
	put(card, AT_MSIX + PCI_MSIX_PBA, 4, MSIX_PENDING | 2);
}

static int slot_of(struct pci_bus *on, unsigned int devfn)
{
	if (on->number || PCI_FUNC(devfn) || PCI_SLOT(devfn) >= cards)
		return -1;
	return PCI_SLOT(devfn);
}

static int read_config(struct pci_bus *on, unsigned int devfn, int where, int size, u32 *value)
{
	int card = slot_of(on, devfn);

	*value = 0;
	if (card < 0) {
		*value = ~0u;
		return PCIBIOS_DEVICE_NOT_FOUND;
	}
	if (where + size <= CONFIG_BYTES)
		memcpy(value, &config[card][where], size);
	return PCIBIOS_SUCCESSFUL;
}

static int write_config(struct pci_bus *on, unsigned int devfn, int where, int size, u32 value)
{
	int card = slot_of(on, devfn);

	if (card < 0)
		return PCIBIOS_DEVICE_NOT_FOUND;
	if (where == AT_BAR2 && size == 4)
		put(card, where, 4, value & ~(u32)(BAR_BYTES - 1));
	else if (where == PCI_COMMAND || where == PCI_INTERRUPT_LINE || where == AT_PM + PCI_PM_CTRL)
		put(card, where, size, value);
	else if (where == AT_MSIX + PCI_MSIX_FLAGS && size == 2)
		put(card, where, 2, (value & (PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL)) | (VECTORS - 1));
	return PCIBIOS_SUCCESSFUL;
}

static struct pci_ops ops = { .read = read_config, .write = write_config };

/* Resets and memory go on and off as they are told; DMA is always quiet. */
static int be_chip(void *unused)
{
	while (!kthread_should_stop()) {
		for (int card = 0; card < cards; card++) {
			u32 scu3 = readl(bars[card] + SCU_3), scu2 = readl(bars[card] + SCU_2), now = scu3;

			now = (now & FORCE_RAM_OFF) == FORCE_RAM_OFF ? now | RAM_OFF : now & ~RAM_OFF;
			now = (scu2 & FORCE_RESET_MASK) == FORCE_RESET ? now | IN_RESET : now & ~IN_RESET;
			if (now != scu3)
				writel(now, bars[card] + SCU_3);
		}
		usleep_range(2000, 4000);
	}
	return 0;
}

static void forget_bars(void)
{
	for (int card = 0; card < CARDS_MAX; card++)
		if (bars[card])
			iounmap(bars[card]);
}

static int __init virtual_card_init(void)
{
	LIST_HEAD(resources);

	if (cards < 1 || cards > CARDS_MAX)
		return -EINVAL;
	for (int card = 0; card < cards; card++) {
		make_card(card);
		bars[card] = ioremap(base + card * BAR_BYTES, BAR_BYTES);
		if (!bars[card]) {
			forget_bars();
			return -ENOMEM;
		}
		memset_io(bars[card], 0, BAR_BYTES);
		writel(1, bars[card] + DMA_PAUSED);
		writel(1, bars[card] + PAGE_TABLE_INIT);
		writel(1, bars[card] + MSIX_TABLE_INIT);
		writel(AT_45_DEGREES, bars[card] + TEMPERATURE);
	}
	chip = kthread_run(be_chip, NULL, "virtual_card");
	if (IS_ERR(chip)) {
		forget_bars();
		return PTR_ERR(chip);
	}
	window.start = base;
	window.end = base + (ulong)cards * BAR_BYTES - 1;
	pci_add_resource(&resources, &window);
	pci_add_resource(&resources, &numbers);
	pci_lock_rescan_remove();
	bus = pci_create_root_bus(NULL, 0, &ops, &sysdata, &resources);
	if (!bus) {
		pci_unlock_rescan_remove();
		pci_free_resource_list(&resources);
		kthread_stop(chip);
		forget_bars();
		return -ENODEV;
	}
	pci_scan_child_bus(bus);
	pci_assign_unassigned_bus_resources(bus);
	pci_bus_add_devices(bus);
	pci_unlock_rescan_remove();
	return 0;
}

static void __exit virtual_card_exit(void)
{
	pci_lock_rescan_remove();
	pci_stop_root_bus(bus);
	pci_remove_root_bus(bus);
	pci_unlock_rescan_remove();
	kthread_stop(chip);
	forget_bars();
}

module_init(virtual_card_init);
module_exit(virtual_card_exit);
MODULE_DESCRIPTION("Edge TPU cards on a virtual PCI bus, for tests");
MODULE_LICENSE("GPL");
