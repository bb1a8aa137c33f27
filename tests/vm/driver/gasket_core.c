// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A stand-in for Google's driver, for tests where its source can't be had. It has what the host
 * setup deals with: the modules' names, the class apex, the nodes' major number 120, temp and
 * is_device_owned in sysfs, and what our patches mend. It drives nothing.
 */
#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/version.h>

#include "standin.h"

#define MAJOR_OF_APEX 120
#define CARDS_MAX 8

struct standin {
	struct cdev node;
	struct device *shown;
	int minor;
	atomic_t opened;
	pid_t owner;
};

static struct class *apex_class;
static DEFINE_IDA(minors);

static int gasket_open(struct inode *inode, struct file *file)
{
	struct standin *card = container_of(inode->i_cdev, struct standin, node);

	if (atomic_cmpxchg(&card->opened, 0, 1) && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	card->owner = current->tgid;
	file->private_data = card;
	return 0;
}

static int gasket_release(struct inode *inode, struct file *file)
{
	struct standin *card = file->private_data;

	atomic_set(&card->opened, 0);
	card->owner = 0;
	return 0;
}

static int gasket_mmap(struct file *file, struct vm_area_struct *vma)
{
	zap_vma_ptes(vma, vma->vm_start, vma->vm_end - vma->vm_start);
	return -ENODEV;
}

static const struct file_operations gasket_file_ops = {
	.owner = THIS_MODULE,
	.llseek = no_llseek,
	.mmap = gasket_mmap,
	.open = gasket_open,
	.release = gasket_release,
};

static ssize_t temp_show(struct device *shown, struct device_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%d\n", 45050);
}
static DEVICE_ATTR_RO(temp);

static ssize_t is_device_owned_show(struct device *shown, struct device_attribute *attribute, char *text)
{
	struct standin *card = dev_get_drvdata(shown);

	return sysfs_emit(text, "%d\n", atomic_read(&card->opened));
}
static DEVICE_ATTR_RO(is_device_owned);

static ssize_t device_owner_show(struct device *shown, struct device_attribute *attribute, char *text)
{
	struct standin *card = dev_get_drvdata(shown);

	return sysfs_emit(text, "%d\n", card->owner);
}
static DEVICE_ATTR_RO(device_owner);

static struct attribute *standin_attrs[] = {
	&dev_attr_temp.attr, &dev_attr_is_device_owned.attr, &dev_attr_device_owner.attr, NULL
};
ATTRIBUTE_GROUPS(standin);

int standin_add(struct pci_dev *pci)
{
	struct standin *card = kzalloc(sizeof(*card), GFP_KERNEL);
	dev_t number;
	int failed;

	if (!card)
		return -ENOMEM;
	card->minor = ida_alloc_max(&minors, CARDS_MAX - 1, GFP_KERNEL);
	number = MKDEV(MAJOR_OF_APEX, card->minor);
	cdev_init(&card->node, &gasket_file_ops);
	failed = cdev_add(&card->node, number, 1);
	if (failed) {
		ida_free(&minors, card->minor);
		kfree(card);
		return failed;
	}
	card->shown = device_create_with_groups(apex_class, &pci->dev, number, card, standin_groups,
						"apex_%d", card->minor);
	pci_set_drvdata(pci, card);
	return 0;
}
EXPORT_SYMBOL_GPL(standin_add);

void standin_remove(struct pci_dev *pci)
{
	struct standin *card = pci_get_drvdata(pci);

	device_destroy(apex_class, MKDEV(MAJOR_OF_APEX, card->minor));
	cdev_del(&card->node);
	ida_free(&minors, card->minor);
	kfree(card);
}
EXPORT_SYMBOL_GPL(standin_remove);

static int __init standin_init(void)
{
	int failed = register_chrdev_region(MKDEV(MAJOR_OF_APEX, 0), CARDS_MAX, "apex");

	if (failed)
		return failed;
	apex_class = class_create("apex");
	return PTR_ERR_OR_ZERO(apex_class);
}

static void __exit standin_exit(void)
{
	class_destroy(apex_class);
	unregister_chrdev_region(MKDEV(MAJOR_OF_APEX, 0), CARDS_MAX);
}

module_init(standin_init);
module_exit(standin_exit);
MODULE_DESCRIPTION("A stand-in for Google's gasket, for tests");
MODULE_VERSION("0.standin");
