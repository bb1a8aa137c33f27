/* A stand-in for libedgetpu.so.1, for tests on computers without an Edge TPU.
 *
 * It exports the six symbols of the real library that Reef uses, needs nothing but libc, and claims
 * the operator `edgetpu-custom-op` like the real one. The structures are those of TensorFlow Lite
 * 2.14 to LiteRT 2.3, declared here by hand: neither Python package ships headers.
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
 * create=  ok | fail | hang | abort | kill | permission | busy | missing | dead | newer
 * invoke=  ok | fail | hang | abort | segv | kill
 * after=N  the fault of `invoke` begins after N inferences of this process
 * once     the fault is gone once it has happened
 * latency_us=N  an inference takes so long: a sleep, as the CPU waits for a real device
 * upload_ms=N   a stick without firmware is away from the bus for so long while it is loaded
 *
 * The output is valid for a detector with eight anchors and eight classes (compiled_model.py): the
 * score of class k at anchor k is 0.5 + byte k of the input's hash / 512. Other outputs are zeros.
 *
 * Compiled with -DOLD_STRUCT it is like Google's library of 2021, whose TfLiteRegistration lacks
 * the fields that TensorFlow Lite has read since 2.10.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
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

/* ------------------------------------------------------------ what it knows */

enum { MAX_DEVICES = 16, PATH = 512, ANCHORS = 8 };

struct edgetpu_device { int type; const char *path; }; /* 0 PCIe, 1 USB */

typedef struct { int type; bool loaded; char key[64]; } Found;

typedef struct {
    Delegate delegate;
    char key[64];
    int owner; /* descriptor of the locked file */
    bool newer;
} Device;

typedef struct {
    char create[24], invoke[24];
    long after, latency_us, upload_ms;
    bool once;
} Control;

static int verbosity;
static long inferences;

static const char *root(void) {
    const char *folder = getenv("STANDIN_ROOT");
    return folder ? folder : "/nonexistent";
}

static void say(const char *format, ...) {
    va_list values;
    if (verbosity < 1) return;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
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
    Control told = {.create = "ok", .invoke = "ok", .upload_ms = 100};
    if (!slurp(text, sizeof text, "control/%s", key) &&
        !slurp(text, sizeof text, "control/%s", "default"))
        return told;
    while ((word = strsep(&rest, " \n"))) {
        sscanf(word, "create=%23s", told.create);
        sscanf(word, "invoke=%23s", told.invoke);
        sscanf(word, "after=%ld", &told.after);
        sscanf(word, "latency_us=%ld", &told.latency_us);
        sscanf(word, "upload_ms=%ld", &told.upload_ms);
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

static int list(Found *found) {
    char path[PATH], text[64], product[64];
    struct dirent **names;
    struct stat node;
    int number = 0;
    snprintf(path, sizeof path, "%s/sys/class/apex", root());
    int entries = scandir(path, &names, NULL, by_name);
    for (int i = 0; i < entries; i++) {
        snprintf(path, sizeof path, "%s/dev/%s", root(), names[i]->d_name);
        if (!strncmp(names[i]->d_name, "apex", 4) && !stat(path, &node) && number < MAX_DEVICES) {
            found[number].type = 0;
            snprintf(found[number++].key, sizeof found->key, "%.60s", names[i]->d_name);
        }
        free(names[i]);
    }
    if (entries >= 0) free(names);
    for (int loaded = 0; loaded < 2; loaded++) { /* all without firmware, then all with it */
        snprintf(path, sizeof path, "%s/sys/bus/usb/devices", root());
        entries = scandir(path, &names, NULL, by_name);
        for (int i = 0; i < entries; i++) {
            if (slurp(text, sizeof text, "sys/bus/usb/devices/%s/idVendor", names[i]->d_name) &&
                slurp(product, sizeof product, "sys/bus/usb/devices/%s/idProduct",
                      names[i]->d_name) &&
                !strncmp(text, loaded ? "18d1" : "1a6e", 4) &&
                !strncmp(product, loaded ? "9302" : "089a", 4) && number < MAX_DEVICES) {
                found[number].type = 1;
                found[number].loaded = loaded;
                snprintf(found[number++].key, sizeof found->key, "%.60s", names[i]->d_name);
            }
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
        listed[i].path = text;
        snprintf(text, PATH, found[i].type ? "/sys/bus/usb/devices/%s" : "/dev/%s", found[i].key);
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

static void misbehave(const char *how, const char *key) {
    if (!strcmp(how, "hang")) {
        event("hangs", key);
        for (;;) pause();
    }
    if (!strcmp(how, "abort")) {
        event("aborts", key);
        say("F driver/usb/usb_driver.cc:1148] HandleQueuedBulkIn transfer in failed. Not found: "
            "USB transfer error 5 [LibUsbDataInCallback]");
        abort();
    }
    if (!strcmp(how, "segv")) {
        event("crashes", key);
        raise(SIGSEGV);
    }
    if (!strcmp(how, "kill")) {
        event("dies", key);
        raise(SIGKILL);
    }
}

static bool take(Device *device, const Found *found) {
    char path[PATH], pid[24] = "";
    snprintf(path, sizeof path, "%s/owners/%s", root(), device->key);
    device->owner = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (!flock(device->owner, LOCK_EX | LOCK_NB)) {
        int length = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
        if (ftruncate(device->owner, 0) || pwrite(device->owner, pid, length, 0) != length)
            say("E standin: the owner's pid can't be written");
        event("opened", device->key);
        return true;
    }
    event("double-open", device->key);
    if (found->type == 1 && read(device->owner, pid, sizeof pid - 1) > 0)
        kill(atoi(pid), SIGABRT); /* opening a stick resets it, which aborts whoever has it */
    else
        say("Failed to open device [Apex (PCIe)] at [/dev/%s]: Failed precondition: Device open "
            "failed : -1 (Operation not permitted)", device->key);
    close(device->owner);
    return false;
}

static bool refused(const char *how, const char *key) {
    const char *why = !strcmp(how, "permission") ? "Permission denied"
                      : !strcmp(how, "busy")     ? "Operation not permitted"
                      : !strcmp(how, "dead")     ? "No such device or address"
                                                 : NULL;
    if (!strcmp(how, "missing"))
        say("I driver_factory_default.cc:48] Failed to stat /dev/%s: No such file or directory\n"
            "Failed allocating Edge TPU device for shared ownership.", key);
    else if (why)
        say("Failed to open device [Apex (PCIe)] at [/dev/%s]: Failed precondition: Device open "
            "failed : -1 (%s)", key, why);
    else if (strcmp(how, "fail"))
        return false;
    return true;
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
    Device *device = node->user_data;
    if (!device->newer) return OK;
    context->ReportError(context, "Failed precondition: Package requires runtime version (15), "
                                  "which is newer than this runtime version (14)");
    return ERROR;
}

static int kernel_invoke(Context *context, Node *node) {
    Device *device = node->user_data;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    Control told = control(device->key);
    until.tv_nsec += told.latency_us % 1000000 * 1000;
    until.tv_sec += told.latency_us / 1000000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (strcmp(told.invoke, "ok") && inferences++ >= told.after) {
        if (told.once) forget(device->key);
        misbehave(told.invoke, device->key);
        event("fails", device->key);
        context->ReportError(context, "Failed to execute request. ");
        return ERROR;
    }
    Tensor *in = &context->tensors[node->inputs->data[0]];
    uint64_t sum = hash(in->data, in->bytes);
    for (int i = 0; i < node->outputs->size; i++) {
        Tensor *out = &context->tensors[node->outputs->data[i]];
        memset(out->data, 0, out->bytes);
        if (out->type == FLOAT32 && out->bytes == 4 * ANCHORS * ANCHORS)
            for (int k = 0; k < ANCHORS; k++)
                ((float *)out->data)[k * ANCHORS + k] = 0.5f + (sum >> 8 * k & 255) / 512.0f;
    }
    prctl(PR_SET_TIMERSLACK, 1UL); /* 1 ns: an interrupt does not wait for others, as a timer may */
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {}
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

/* ------------------------------------------------------------ what load_delegate calls */

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t number,
                                        void (*report)(const char *)) {
    (void)report; /* the real library never calls it */
    const char *which = "";
    Found found[MAX_DEVICES];
    int wanted = 0, there = list(found);
    for (size_t i = 0; i < number; i++) {
        if (!strcmp(keys[i], "device")) which = values[i];
        else event(values[i], keys[i]);
    }
    if (strchr(which, ':')) wanted = atoi(strchr(which, ':') + 1);
    for (int i = 0; i < there; i++) {
        if (strncmp(which, found[i].type ? "usb" : "pci", 3) && *which && *which != ':') continue;
        if (wanted--) continue;
        Control told = control(found[i].key);
        if (told.once && strcmp(told.create, "ok")) forget(found[i].key);
        misbehave(told.create, found[i].key);
        if (refused(told.create, found[i].key)) return NULL;
        Device *device = calloc(1, sizeof *device);
        snprintf(device->key, sizeof device->key, "%s", found[i].key);
        device->newer = !strcmp(told.create, "newer");
        if (!take(device, &found[i])) return free(device), NULL;
        if (found[i].type == 1 && !found[i].loaded) load_firmware(device->key, told.upload_ms);
        device->delegate.data = device;
        device->delegate.Prepare = prepare;
        device->delegate.flags = 1; /* the operator is nobody else's, so it is not prepared first */
        return &device->delegate;
    }
    say("Failed allocating Edge TPU device for shared ownership.");
    return NULL;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) {
    if (!delegate) return;
    Device *device = delegate->data;
    event("closed", device->key);
    close(device->owner);
    free(device);
}
