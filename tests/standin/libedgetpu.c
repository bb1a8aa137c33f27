/* A stand-in for libedgetpu.so.1, for tests on computers without an Edge TPU.
 *
 * It exports the eight symbols of the real library that Reef and TensorFlow Lite use, needs nothing
 * but libc, and claims the operator `edgetpu-custom-op` like the real one. The structures are those
 * of TensorFlow Lite 2.14 to LiteRT 2.3, declared here by hand: neither Python package ships
 * headers. Its failures are OPENINGS and INFERENCES below, with the texts that the real library
 * prints; lines at level I only come at verbosity 1 and more, as there.
 *
 * Everything it knows lies under the folder named by STANDIN_ROOT:
 *
 *   sys/, dev/      a tree like the kernel's: devices are listed from it as the real library does,
 *                   sticks without firmware first, and opening one "loads" its firmware
 *   control/KEY     what the device KEY (apex_0, 2-1) does, read again at every call: words such as
 *                   `latency_us=7000 invoke=hang once`; control/default for all others
 *   owners/KEY      locked while a process has the device, with its pid inside
 *   events          one line for everything that happened: `SECONDS PID EVENT KEY`
 *
 * create=NAME   how it opens: ok, or one of OPENINGS
 * invoke=NAME   how it infers: ok, or one of INFERENCES
 * close=spin    closing it never ends and takes a whole core, as with a chip that is deaf
 * pulled=abort  a stick that is gone from the tree aborts its process, idle or not
 * after=N       the fault of `invoke` begins after N inferences of this process
 * every=N       the fault of `invoke` comes at each Nth inference only
 * once          the fault is gone once it has happened
 * create_ms=N   opening it takes so long
 * upload_ms=N   a stick without firmware is away from the bus for so long while it is loaded
 * latency_us=N  an inference takes so long: a sleep, as the CPU waits for a real device
 * reload_us=N   the first inference of a model after another's takes so much longer
 * output_kib=N  a stick's output is so large, in place of what the model has: a line a chunk
 * chunk_bytes=N of a stick's output: 1024, or 256 on USB 2
 * warnings=N    so many lines at level W an inference, whatever the verbosity
 *
 * The output is valid for a detector with eight anchors and eight classes (compiled_model.py): the
 * score of class k at anchor k is 0.5 + byte k of the input's hash / 512. A model of four outputs
 * gets finished detections. Other outputs are zeros.
 *
 * Compiled with -DOLD_STRUCT it is like Google's library of 2021, whose TfLiteRegistration lacks
 * the fields that TensorFlow Lite has read since 2.10; with -DMAX_VARIANT it is the build that lets
 * sticks run at Max.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------ TensorFlow Lite's structures */

typedef struct { int size; int data[]; } IntArray;

typedef struct Tensor {
    int type;
    void *data;
    IntArray *dims;
    struct { float scale; int32_t zero_point; } params;
    int allocation_type;
    size_t bytes;
    const void *allocation;
    const char *name;
    struct Delegate *delegate;
    int buffer_handle;
    bool data_is_stale, is_variable;
    struct { int type; void *params; } quantization;
    void *sparsity;
    const IntArray *dims_signature;
} Tensor;

typedef struct Node {
    IntArray *inputs, *outputs, *intermediates, *temporaries;
    void *user_data, *builtin_data;
    const void *custom_initial_data;
    int custom_initial_data_size;
    struct Delegate *delegate;
    bool might_have_side_effect;
} Node;

typedef struct Context Context;

typedef struct Registration {
    void *(*init)(Context *, const char *, size_t);
    void (*free)(Context *, void *);
    int (*prepare)(Context *, Node *);
    int (*invoke)(Context *, Node *);
    const char *(*profiling_string)(const Context *, const Node *);
    int32_t builtin_code;
    const char *custom_name;
    int version;
#ifndef OLD_STRUCT
    void *registration_external;
    void *async_kernel;
    uint64_t inplace_operator;
#endif
} Registration;

struct Context {
    size_t tensors_size;
    int (*GetExecutionPlan)(Context *, IntArray **);
    Tensor *tensors;
    void *impl;
    int (*ResizeTensor)(Context *, Tensor *, IntArray *);
    void (*ReportError)(Context *, const char *, ...);
    int (*AddTensors)(Context *, int, int *);
    int (*GetNodeAndRegistration)(Context *, int, Node **, Registration **);
    int (*ReplaceNodeSubsetsWithDelegateKernels)(Context *, Registration, const IntArray *,
                                                 struct Delegate *);
};

typedef struct Delegate {
    void *data;
    int (*Prepare)(Context *, struct Delegate *);
    void *CopyFromBufferHandle, *CopyToBufferHandle, *FreeBufferHandle;
    int64_t flags;
    void *opaque_delegate_builder;
} Delegate;

typedef struct {
    Delegate *delegate;
    IntArray *nodes_to_replace, *input_tensors, *output_tensors;
} DelegateParams;

enum { OK = 0, ERROR = 1, FLOAT32 = 1 };

/* ------------------------------------------------------------ how it fails */

typedef enum { ANSWERS, REFUSES, FAILS, ABORTS, TIMES_OUT, HANGS, SPINS, CRASHES, DIES } Ending;

typedef struct {
    const char *name;
    Ending ending;
    const char *prints; /* lines on stderr */
    const char *status; /* what the failed call itself tells */
} Behaviour;

#define NOT_OPENED "Failed precondition: Device open failed : -1 "
#define HIB(status, first) \
    "HIB Error. hib_error_status = " status ", hib_first_error_status = " first
#define HIB_FAULT HIB("0000000000002200", "0000000000000200")
#define HIB_GONE HIB("ffffffffffffffff", "ffffffffffffffff")
#define HIB_LINE "E driver/mmio_driver.cc:254] "
#define LIBUSB "I driver/usb/local_usb_device.cc:60] ConvertLibUsbError: "
#define STICK_GONE \
    "F driver/usb/usb_driver.cc:1148] HandleQueuedBulkIn transfer in failed. Not found: " \
    "USB transfer error 5 [LibUsbDataInCallback]"
#define TIMED_OUT \
    "I driver/usb/local_usb_device.cc:100] ConvertLibUsbTransferStatus: USB transfer error 2 " \
    "[LibUsbDataInCallback]"
#define CANCELLED \
    "I driver/usb/local_usb_device.cc:100] ConvertLibUsbTransferStatus: USB transfer error 3 " \
    "[LibUsbDataInCallback]"

static const Behaviour OPENINGS[] = {
    {"ok", ANSWERS, NULL, NULL},
    {"newer", ANSWERS, NULL, NULL},    /* its models can't be prepared */
    {"unprepared", ANSWERS, NULL, NULL},
    {"missing", REFUSES, NULL, NULL},  /* its node is not there, so it is not listed */
    {"unlisted", REFUSES, NULL, NULL}, /* not listed, without a word */
    {"fail", REFUSES, NULL, NULL},     /* listed, and not opened, without a word */
    {"permission", REFUSES, NULL, NOT_OPENED "(Permission denied)"},
    {"busy", REFUSES, NULL, NOT_OPENED "(Operation not permitted)"},
    {"dead", REFUSES, NULL, NOT_OPENED "(No such device or address)"},
    {"removed", REFUSES, NULL, NOT_OPENED "(No such device)"},
    {"io_error", REFUSES, NULL, NOT_OPENED "(Input/output error)"},
    {"reset_timeout", REFUSES, NULL, NOT_OPENED "(Connection timed out)"},
    {"page_table", REFUSES, NULL,
     "Failed precondition: Could not partition page table. : 6 (Operation not permitted)"},
    {"coherent", REFUSES, NULL,
     "Failed precondition: Could not enable coherent allocator size 16384. : fd=9 "
     "(Cannot allocate memory)"},
    {"eventfd", REFUSES, NULL,
     "Failed precondition: Setting Event Fd Failed : 8 (Inappropriate ioctl for device)"},
    {"hib", REFUSES, HIB_LINE HIB_FAULT, "Internal: " HIB_FAULT},
    {"off_bus", REFUSES, HIB_LINE HIB_GONE, "Internal: " HIB_GONE},
    {"usb_permission", REFUSES, LIBUSB "USB error -3 [OpenDevice]",
     "Permission denied: USB error -3 [OpenDevice]"},
    {"usb_busy", REFUSES, LIBUSB "USB error -6 [ClaimInterface]",
     "Deadline exceeded: USB error -6 [ClaimInterface]"},
    {"usb_stall", REFUSES, LIBUSB "USB error -9 [GetDeviceDescriptor]",
     "Unknown: USB error -9 [GetDeviceDescriptor]"},
    {"usb_other", REFUSES, LIBUSB "USB error -1 [OpenDevice]",
     "Unknown: USB error -1 [OpenDevice]"},
    {"map", ABORTS,
     "F port/default/port_from_tf/statusor.cc:38] Attempting to fetch value instead of handling "
     "error Failed precondition: Could not map pages : 10 (Device or resource busy)", NULL},
    {"abort", ABORTS, STICK_GONE, NULL},
    {"segv", CRASHES, NULL, NULL},
    {"kill", DIES, NULL, NULL},
    {"hang", HANGS, NULL, NULL},
    {"deaf", SPINS, NULL, NULL}, /* polls a register without a limit */
    {0},
};

static const Behaviour INFERENCES[] = {
    {"ok", ANSWERS, NULL, NULL},
    {"nan", ANSWERS, NULL, NULL},   /* no numbers */
    {"count", ANSWERS, NULL, NULL}, /* a negative number of detections, of a model with a number */
    {"score", ANSWERS, NULL, NULL}, /* 2.5 */
    {"zeros", ANSWERS, NULL, NULL},
    {"stale", ANSWERS, NULL, NULL}, /* the answer before */
    {"fail", FAILS, NULL, ""},
    {"map", FAILS, NULL, "Could not map pages : 10 (Device or resource busy)"},
    {"hang", HANGS, NULL, NULL}, /* PCIe: never ends, lost interrupt, queue error, off the bus */
    {"hib", HANGS, HIB_LINE HIB_FAULT, NULL},
    {"off_bus", HANGS, HIB_LINE HIB_GONE, NULL},
    {"spin", SPINS, NULL, NULL},
    {"spurious", ABORTS,
     "F driver/mmio_driver.cc:527] Non-OK-status: dma_scheduler_.NotifyRequestCompletion() status: "
     "Failed precondition: No active request to complete.", NULL},
    {"unmap", ABORTS,
     "F driver/single_tpu_request.cc:97] Non-OK-status: Cleanup() status: Failed precondition: "
     "Could not unmap pages : 10 (Device or resource busy)", NULL},
    {"abort", ABORTS, STICK_GONE, NULL},
    {"usb_gone", ABORTS, STICK_GONE, NULL},
    {"usb_held", HANGS, STICK_GONE, NULL}, /* it aborts, and the kernel does not let it go */
    {"usb_memory", ABORTS,
     "F driver/usb/usb_driver.cc:870] transfer on tag 1 failed. Abort. Resource exhausted: USB "
     "error -11 [AsyncBulkOutTransfer]", NULL},
    {"usb_link", ABORTS,
     "F driver/usb/usb_driver.cc:802] [0-0] bulk out for header failed. Abort. Unknown: USB "
     "transfer error 1 [LibUsbDataOutCallback]", NULL},
    {"usb_power", TIMES_OUT,
     "F driver/usb/usb_driver.cc:859] transfer on tag 1 failed. Abort. Deadline exceeded: USB "
     "transfer error 2 [LibUsbDataOutCallback]", NULL},
    {"usb_hib", ABORTS,
     HIB_LINE HIB_FAULT "\nF driver/usb/usb_driver.cc:446] Non-OK-status: CheckHibError() status: "
     "Internal: " HIB_FAULT, NULL},
    {"segv", CRASHES, NULL, NULL},
    {"kill", DIES, NULL, NULL},
    {0},
};

/* ------------------------------------------------------------ what it knows */

enum { MAX_DEVICES = 16, PATH = 512, ANCHORS = 8, TICK_MS = 20, QUEUED_TRANSFERS = 11 };

struct edgetpu_device { int type; const char *path; }; /* 0 PCIe, 1 USB */

struct edgetpu_option { const char *name, *value; };

typedef struct { int type; bool loaded; char key[64], path[PATH]; } Found;

typedef struct {
    Delegate delegate;
    Found is;
    int owner; /* descriptor of the locked file */
    char create[24];
    const Context *model; /* whose parameters it has */
    uint64_t sum;         /* of its last input */
    pthread_t watch;
    atomic_bool closing;
    atomic_long used_ms;
} Device;

typedef struct {
    char create[24], invoke[24], close[24], pulled[24];
    long after, every, create_ms, upload_ms, latency_us, reload_us, output_kib, chunk_bytes;
    long warnings;
    bool once;
} Control;

static int verbosity;
static long inferences;
static long usb_timeout_ms = 6000;

static void __attribute__((constructor)) configure(void) {
    const char *told = getenv("USB_TIMEOUT_MILLIS"); /* read when the library is loaded */
    if (told) usb_timeout_ms = atol(told);
}

static const char *root(void) {
    const char *folder = getenv("STANDIN_ROOT");
    return folder ? folder : "/nonexistent";
}

static const Behaviour *behaviour(const Behaviour *known, const char *name) {
    for (; known->name; known++)
        if (!strcmp(known->name, name)) return known;
    fprintf(stderr, "F standin: there is no behaviour `%s`\n", name);
    abort();
}

/* Print one line, if it is graver than level I or chatter is wanted. */
static void say(const char *format, ...) {
    char line[1024];
    va_list values;
    if (*format == 'I' && verbosity < 1) return;
    va_start(values, format);
    vsnprintf(line, sizeof line - 1, format, values);
    va_end(values);
    strcat(line, "\n");
    fputs(line, stderr);
}

static long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void event(const char *what, const char *key) {
    char path[PATH], line[160];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(path, sizeof path, "%s/events", root());
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    int length = snprintf(line, sizeof line, "%ld.%06ld %d %s %s\n", (long)now.tv_sec,
                          now.tv_nsec / 1000, (int)getpid(), what, key);
    if (file < 0 || write(file, line, length) != length) say("E standin: no event can be written");
    if (file >= 0) close(file);
}

static bool slurp(char *into, size_t size, const char *format, const char *name) {
    char path[PATH], pattern[PATH];
    snprintf(pattern, sizeof pattern, "%s/%s", root(), format);
    snprintf(path, sizeof path, pattern, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    ssize_t length = read(file, into, size - 1);
    close(file);
    if (length < 0) return false;
    into[length] = 0;
    return true;
}

static Control control(const char *key) {
    char text[256], *rest = text, *word;
    Control told = {.create = "ok", .invoke = "ok", .upload_ms = 100, .every = 1,
                    .output_kib = -1, .chunk_bytes = 1024};
    if (!slurp(text, sizeof text, "control/%s", key) &&
        !slurp(text, sizeof text, "control/%s", "default"))
        return told;
    while ((word = strsep(&rest, " \n"))) {
        sscanf(word, "create=%23s", told.create);
        sscanf(word, "invoke=%23s", told.invoke);
        sscanf(word, "close=%23s", told.close);
        sscanf(word, "pulled=%23s", told.pulled);
        sscanf(word, "after=%ld", &told.after);
        sscanf(word, "every=%ld", &told.every);
        sscanf(word, "create_ms=%ld", &told.create_ms);
        sscanf(word, "upload_ms=%ld", &told.upload_ms);
        sscanf(word, "latency_us=%ld", &told.latency_us);
        sscanf(word, "reload_us=%ld", &told.reload_us);
        sscanf(word, "output_kib=%ld", &told.output_kib);
        sscanf(word, "chunk_bytes=%ld", &told.chunk_bytes);
        sscanf(word, "warnings=%ld", &told.warnings);
        if (!strcmp(word, "once")) told.once = true;
    }
    return told;
}

static void forget(const char *key) { /* a fault that happens once: the device is as others are */
    char path[PATH];
    snprintf(path, sizeof path, "%s/control/%s", root(), key);
    unlink(path);
}

/* ------------------------------------------------------------ which devices there are */

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static bool is_listed(const char *key) {
    const char *how = control(key).create;
    return strcmp(how, "missing") && strcmp(how, "unlisted");
}

static void add(Found *found, int *number, int type, bool loaded, const char *key) {
    if (*number == MAX_DEVICES) return;
    Found *one = &found[(*number)++];
    one->type = type;
    one->loaded = loaded;
    snprintf(one->key, sizeof one->key, "%.60s", key);
    snprintf(one->path, sizeof one->path, type ? "/sys/bus/usb/devices/%s" : "/dev/%s", one->key);
}

static int list(Found *found) {
    char path[PATH], vendor[64], product[64];
    struct dirent **names;
    struct stat node;
    int number = 0;
    snprintf(path, sizeof path, "%s/sys/class/apex", root());
    int entries = scandir(path, &names, NULL, by_name);
    for (int i = 0; i < entries; i++) {
        const char *key = names[i]->d_name;
        snprintf(path, sizeof path, "%s/dev/%s", root(), key);
        if (strncmp(key, "apex", 4)) {
        } else if (stat(path, &node) || !strcmp(control(key).create, "missing")) {
            say("I driver/driver_factory_default.cc:48] Failed to stat /dev/%s: No such file or "
                "directory", key);
        } else if (is_listed(key)) {
            add(found, &number, 0, true, key);
        }
        free(names[i]);
    }
    if (entries >= 0) free(names);
    for (int loaded = 0; loaded < 2; loaded++) { /* all without firmware, then all with it */
        snprintf(path, sizeof path, "%s/sys/bus/usb/devices", root());
        entries = scandir(path, &names, NULL, by_name);
        for (int i = 0; i < entries; i++) {
            const char *key = names[i]->d_name;
            if (slurp(vendor, sizeof vendor, "sys/bus/usb/devices/%s/idVendor", key) &&
                slurp(product, sizeof product, "sys/bus/usb/devices/%s/idProduct", key) &&
                !strncmp(vendor, loaded ? "18d1" : "1a6e", 4) &&
                !strncmp(product, loaded ? "9302" : "089a", 4) && is_listed(key))
                add(found, &number, 1, loaded, key);
            free(names[i]);
        }
        if (entries >= 0) free(names);
    }
    return number;
}

struct edgetpu_device *edgetpu_list_devices(size_t *number) {
    Found found[MAX_DEVICES];
    *number = list(found);
    if (!*number) return NULL;
    struct edgetpu_device *listed = calloc(*number, sizeof *listed + PATH);
    char *text = (char *)(listed + *number);
    for (size_t i = 0; i < *number; i++, text += PATH) {
        listed[i].type = found[i].type;
        listed[i].path = strcpy(text, found[i].path);
    }
    return listed;
}

void edgetpu_free_devices(struct edgetpu_device *listed) { free(listed); }

void edgetpu_verbosity(int level) { verbosity = level; }

const char *edgetpu_version(void) {
#ifdef OLD_STRUCT
    return "BuildLabel(COMPILER=6.3.0 20170516,DATE=redacted,TIME=redacted,"
           "CL_NUMBER=379060148), RuntimeVersion(14)";
#else
    return "BuildLabel(COMPILER=a stand-in,DATE=redacted), RuntimeVersion(14)";
#endif
}

/* ------------------------------------------------------------ opening a device */

static void put(const char *key, const char *name, const char *text) {
    char path[PATH], fresh[PATH + 8];
    snprintf(path, sizeof path, "%s/sys/bus/usb/devices/%s/%s", root(), key, name);
    snprintf(fresh, sizeof fresh, "%s.new", path);
    FILE *file = fopen(fresh, "we");
    if (!file) return;
    fputs(text, file);
    fclose(file);
    rename(fresh, path);
}

static void load_firmware(const char *key, long upload_ms) {
    char here[PATH], away[PATH];
    event("firmware", key);
    snprintf(here, sizeof here, "%s/sys/bus/usb/devices/%s", root(), key);
    snprintf(away, sizeof away, "%s/away-%s", root(), key);
    if (rename(here, away)) return; /* it leaves the bus, and comes back as another product */
    usleep(1000 * upload_ms);
    rename(away, here);
    put(key, "idVendor", "18d1\n");
    put(key, "idProduct", "9302\n");
}

/* Do what the behaviour says; returns, if at all, whether the call goes on. */
static bool carry_on(const Behaviour *how, const char *key) {
    if (how->prints) {
        char lines[1024], *rest = lines, *line;
        snprintf(lines, sizeof lines, "%s", how->prints);
        if (how->ending == TIMES_OUT) usleep(1000 * usb_timeout_ms);
        while ((line = strsep(&rest, "\n"))) say(line);
    }
    switch (how->ending) {
    case ANSWERS:
        return true;
    case REFUSES:
    case FAILS:
        return false;
    case ABORTS:
    case TIMES_OUT:
        event("aborts", key);
        abort();
    case HANGS:
        event("hangs", key);
        for (;;) pause();
    case SPINS:
        event("spins", key);
        for (;;) {}
    case CRASHES:
        event("crashes", key);
        raise(SIGSEGV);
        return false;
    case DIES:
        event("dies", key);
        raise(SIGKILL);
        return false;
    }
    return false;
}

static void not_opened(const Found *found, const char *status) {
    say("I tflite/edgetpu_context_direct.cc:401] Failed to open device [Apex (%s)] at [%s]: %s",
        found->type ? "USB" : "PCIe", found->path, status);
}

static bool take(Device *device) {
    char path[PATH], pid[24] = "";
    const char *key = device->is.key;
    snprintf(path, sizeof path, "%s/owners/%s", root(), key);
    device->owner = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (!flock(device->owner, LOCK_EX | LOCK_NB)) {
        int length = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
        if (ftruncate(device->owner, 0) || pwrite(device->owner, pid, length, 0) != length)
            say("E standin: the owner's pid can't be written");
        event("opened", key);
        return true;
    }
    event("double-open", key);
    if (device->is.type == 1 && read(device->owner, pid, sizeof pid - 1) > 0)
        kill(atoi(pid), SIGABRT); /* opening a stick resets it, which aborts whoever has it */
    else
        not_opened(&device->is, NOT_OPENED "(Operation not permitted)");
    close(device->owner);
    return false;
}

/* What happens to a stick without anybody calling: idle transfers time out, somebody pulls it. */
static void *watch_stick(void *data) {
    Device *device = data;
    char vendor[64];
    while (!device->closing) {
        usleep(1000 * TICK_MS);
        if (now_ms() - device->used_ms >= usb_timeout_ms) {
            device->used_ms = now_ms();
            for (int i = 0; i < QUEUED_TRANSFERS; i++) say(TIMED_OUT);
        }
        if (!slurp(vendor, sizeof vendor, "sys/bus/usb/devices/%s/idVendor", device->is.key) &&
            !strcmp(control(device->is.key).pulled, "abort") && !device->closing)
            carry_on(behaviour(INFERENCES, "usb_gone"), device->is.key);
    }
    return NULL;
}

/* The lines that a card's registers are opened and closed with. */
static void say_registers(const Device *device, bool opening) {
    static const long long REGIONS[][2] = {{0x40000, 4096}, {0x44000, 4096}, {0x48000, 8192}};
    const char *path = device->is.path;
    if (device->is.type == 1) return;
    if (opening) say("I driver/kernel/kernel_registers.cc:83] Opening %s. read_only=0", path);
    for (int i = 0; i < 3; i++)
        if (opening)
            say("I driver/kernel/kernel_registers.cc:97] mmap_offset=0x%016llx, mmap_size=%lld",
                REGIONS[i][0], REGIONS[i][1]);
        else
            say("I driver/kernel/kernel_registers.cc:122] Closing %s. mmap_offset=0x%016llx, "
                "mmap_size=%lld, read_only=0", path, REGIONS[i][0], REGIONS[i][1]);
}

/* ------------------------------------------------------------ the operator */

static uint64_t hash(const uint8_t *bytes, size_t size) {
    const uint64_t base = 0x9E3779B97F4A7C15u;
    uint64_t sum = 0, word;
    for (size_t i = 0; i < size; i += 8) {
        word = 0;
        memcpy(&word, bytes + i, size - i < 8 ? size - i : 8);
        sum = sum * base + word;
    }
    return sum;
}

static void *kernel_init(Context *context, const char *buffer, size_t length) {
    (void)context, (void)length;
    return ((const DelegateParams *)buffer)->delegate->data;
}

static void kernel_free(Context *context, void *data) { (void)context, (void)data; }

static int kernel_prepare(Context *context, Node *node) {
    const char *how = ((Device *)node->user_data)->create;
    if (!strcmp(how, "newer"))
        context->ReportError(context, "Failed to prepare for TPU. Failed precondition: Package "
                                      "requires runtime version (15), which is newer than this "
                                      "runtime version (14).");
    else if (!strcmp(how, "unprepared"))
        context->ReportError(context, "Failed to prepare for TPU. Invalid argument: Executable is "
                                      "corrupt.");
    else
        return OK;
    return ERROR;
}

/* Finished detections: boxes, classes, scores and their number. */
static void put_detections(Context *context, const Node *node, const char *how, uint64_t sum) {
    float *out[4];
    for (int i = 0; i < 4; i++) out[i] = context->tensors[node->outputs->data[i]].data;
    if (!strcmp(how, "zeros")) return;
    for (int k = 0; k < ANCHORS; k++) {
        float box[4] = {0.1f, 0.1f + 0.05f * k, 0.5f, 0.5f + 0.05f * k};
        memcpy(out[0] + 4 * k, box, sizeof box);
        out[1][k] = k;
        out[2][k] = 0.5f + (sum >> 8 * k & 255) / 512.0f;
    }
    *out[3] = ANCHORS;
    if (!strcmp(how, "nan")) out[0][0] = out[1][0] = out[2][0] = *out[3] = NAN;
    if (!strcmp(how, "count")) *out[3] = -5;
    if (!strcmp(how, "score")) out[2][0] = 2.5f;
}

/* What comes before TFLite_Detection_PostProcess: boxes as they are, and a score a class. */
static void put_scores(Context *context, const Node *node, const char *how, uint64_t sum) {
    for (int i = 0; i < node->outputs->size; i++) {
        Tensor *out = &context->tensors[node->outputs->data[i]];
        float *value = out->data;
        if (out->type == FLOAT32 && out->bytes == 4 * 4 * ANCHORS && !strcmp(how, "nan"))
            for (int k = 0; k < 4 * ANCHORS; k++) value[k] = NAN;
        if (out->type != FLOAT32 || out->bytes != 4 * ANCHORS * ANCHORS || !strcmp(how, "zeros"))
            continue;
        for (int k = 0; k < ANCHORS; k++)
            value[k * ANCHORS + k] =
                strcmp(how, "score") ? 0.5f + (sum >> 8 * k & 255) / 512.0f : 2.5f;
    }
}

static void chatter(const Device *device, const Control *told, size_t output_bytes) {
    long bytes = told->output_kib < 0 ? (long)output_bytes : 1024 * told->output_kib;
    for (long i = 0; i < told->warnings; i++)
        say("W driver/beagle/beagle_kernel_top_level_handler.cc:131] Could not set performance "
            "expectation : 4 (Inappropriate ioctl for device)");
    for (long i = 0; device->is.type == 1 && i * told->chunk_bytes < bytes; i++)
        say("I driver/usb/usb_driver.cc:1138] bulk in %ld bytes from buffer index [%ld]",
            told->chunk_bytes, i % 8);
}

static int kernel_invoke(Context *context, Node *node) {
    Device *device = node->user_data;
    const char *key = device->is.key;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    Control told = control(key);
    long takes_us = told.latency_us + (device->model == context ? 0 : told.reload_us);
    until.tv_nsec += takes_us % 1000000 * 1000;
    until.tv_sec += takes_us / 1000000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    device->used_ms = now_ms();
    device->model = context;
    const char *answer = "ok";
    if (strcmp(told.invoke, "ok") && ++inferences > told.after && !(inferences % told.every)) {
        const Behaviour *how = behaviour(INFERENCES, told.invoke);
        if (told.once) forget(key);
        if (!carry_on(how, key)) {
            event("fails", key);
            context->ReportError(context, "Failed to execute request. %s", how->status);
            return ERROR;
        }
        answer = told.invoke;
    }
    size_t bytes = 0;
    for (int i = 0; i < node->outputs->size; i++) {
        Tensor *out = &context->tensors[node->outputs->data[i]];
        memset(out->data, 0, out->bytes);
        bytes += out->bytes;
    }
    Tensor *in = &context->tensors[node->inputs->data[0]];
    uint64_t sum = hash(in->data, in->bytes);
    uint64_t told_sum = strcmp(answer, "stale") ? sum : device->sum;
    if (node->outputs->size == 4) put_detections(context, node, answer, told_sum);
    else put_scores(context, node, answer, told_sum);
    device->sum = sum;
    chatter(device, &told, bytes);
    prctl(PR_SET_TIMERSLACK, 1UL); /* 1 ns: an interrupt does not wait for others, as a timer may */
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {}
    device->used_ms = now_ms();
    return OK;
}

static int __attribute__((noinline)) replace(Context *context, IntArray *nodes, Delegate *to) {
    Registration kernel = {.init = kernel_init, .free = kernel_free, .prepare = kernel_prepare,
                           .invoke = kernel_invoke, .custom_name = "EdgeTpuDelegateForCustomOp",
                           .version = 1};
    /* What lies behind the old structure is whatever the stack held; here it is sure to be bad. */
    volatile uintptr_t stack[64];
    for (int i = 0; i < 64; i++) stack[i] = 0x41;
    int status = context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, nodes, to);
    return stack[0] == 0x41 ? status : ERROR;
}

static int prepare(Context *context, Delegate *delegate) {
    IntArray *plan;
    Node *node;
    Registration *known;
    if (context->GetExecutionPlan(context, &plan)) return ERROR;
    IntArray *ours = calloc(1, sizeof *ours + plan->size * sizeof(int));
    for (int i = 0; i < plan->size; i++)
        if (!context->GetNodeAndRegistration(context, plan->data[i], &node, &known) &&
            known->custom_name && !strcmp(known->custom_name, "edgetpu-custom-op"))
            ours->data[ours->size++] = plan->data[i];
    int status = replace(context, ours, delegate);
    free(ours);
    return status;
}

/* ------------------------------------------------------------ delegates */

static Delegate *open_device(const Found *found) {
    Control told = control(found->key);
    const Behaviour *how = behaviour(OPENINGS, told.create);
    usleep(1000 * told.create_ms);
    if (told.once && strcmp(told.create, "ok")) forget(found->key);
    if (!carry_on(how, found->key)) {
        if (how->status) not_opened(found, how->status);
        return NULL;
    }
    Device *device = calloc(1, sizeof *device);
    device->is = *found;
    strcpy(device->create, told.create);
    if (!take(device)) return free(device), NULL;
    if (found->type == 1 && !found->loaded) load_firmware(found->key, told.upload_ms);
    say_registers(device, true);
    device->used_ms = now_ms();
    if (found->type == 1) pthread_create(&device->watch, NULL, watch_stick, device);
    device->delegate.data = device;
    device->delegate.Prepare = prepare;
    device->delegate.flags = 1; /* the operator is nobody else's, so it is not prepared first */
    return &device->delegate;
}

static bool takes_option(const char *name, const char *value) {
    event(value, name);
#ifndef MAX_VARIANT
    if (!strcmp(value, "Max") && verbosity >= 2)
        say("I tflite/edgetpu_context_direct.cc:82] Performance expectation level Max is not "
            "supported when USB connected EdgeTpu is throttled. Drop to High.");
#endif
    if (strcmp(name, "Performance") || !strcmp(value, "Low") || !strcmp(value, "Medium") ||
        !strcmp(value, "High") || !strcmp(value, "Max"))
        return true;
    say("I tflite/edgetpu_context_direct.cc:354] Invalid argument: Invalid performance setting.");
    return false;
}

/* By path, as the list gave it. */
Delegate *edgetpu_create_delegate(int type, const char *path, const struct edgetpu_option *options,
                                  size_t number) {
    Found found[MAX_DEVICES];
    int there = list(found);
    for (size_t i = 0; i < number; i++)
        if (!takes_option(options[i].name, options[i].value)) return NULL;
    for (int i = 0; i < there; i++)
        if (found[i].type == type && !strcmp(found[i].path, path)) return open_device(&found[i]);
    Found absent = {.type = type};
    snprintf(absent.path, sizeof absent.path, "%s", path);
    not_opened(&absent, NOT_OPENED "(No such file or directory)");
    return NULL;
}

void edgetpu_free_delegate(Delegate *delegate) {
    if (!delegate) return;
    Device *device = delegate->data;
    if (!strcmp(control(device->is.key).close, "spin"))
        carry_on(behaviour(OPENINGS, "deaf"), device->is.key);
    if (device->is.type == 1) {
        device->closing = true;
        pthread_join(device->watch, NULL);
        for (int i = 1; i < QUEUED_TRANSFERS; i++) say(CANCELLED);
    }
    say_registers(device, false);
    event("closed", device->is.key);
    close(device->owner);
    free(device);
}

/* What load_delegate calls: by the place in the list, `usb:1`. */
Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t number,
                                        void (*report)(const char *)) {
    (void)report; /* the real library never calls it */
    const char *which = "";
    Found found[MAX_DEVICES];
    int wanted = 0, there = list(found);
    for (size_t i = 0; i < number; i++)
        if (!strcmp(keys[i], "device")) which = values[i];
        else if (!takes_option(keys[i], values[i])) return NULL;
    if (strchr(which, ':')) wanted = atoi(strchr(which, ':') + 1);
    for (int i = 0; i < there; i++) {
        if (strncmp(which, found[i].type ? "usb" : "pci", 3) && *which && *which != ':') continue;
        if (!wanted--) return open_device(&found[i]);
    }
    say("I tflite/edgetpu_manager_direct.cc:502] Failed allocating Edge TPU device for shared "
        "ownership.");
    return NULL;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) { edgetpu_free_delegate(delegate); }
