/* A plugin for QEMU's user-mode emulation that counts the guest's instructions between marks.
 *
 * The runner marks the begin and the end of a stretch of work by a system call that no kernel knows
 * (prctl 0x45534C4D, kind, which). At each mark one line "kind which count" goes to the file named by `out=`, where count
 * is the number of instructions executed so far by all threads of the guest. One guest thread only: the counter is not
 * atomic. Written against plugin API version 1 (QEMU 4.2 and newer), whose few declarations stand here, since Debian's
 * packages don't bring the header.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;

typedef struct {
    const char *target_name;
    struct {
        int min, cur;
    } version;
    bool system_emulation;
    union {
        struct {
            int smp_vcpus, max_vcpus;
        } system;
    };
} plugin_info;

typedef void (*on_translation)(plugin_id, struct qemu_plugin_tb *);
typedef void (*on_syscall)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_translation);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_syscall);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum { ADD = 0, MARK = 0x45534C4D, PRCTL_AARCH64 = 167, PRCTL_ARM = 172 };

static uint64_t executed;
static FILE *out;

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &executed, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t mark, uint64_t kind, uint64_t which, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)cpu, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (mark != MARK || (number != PRCTL_AARCH64 && number != PRCTL_ARM)) return;
    fprintf(out, "%llu %llu %llu\n", (unsigned long long)kind, (unsigned long long)which, (unsigned long long)executed);
    fflush(out); /* a guest that ends by _exit runs no handlers */
}

EXPORT int qemu_plugin_install(plugin_id id, const plugin_info *info, int count, char **words) {
    (void)info;
    for (int i = 0; i < count; i++)
        if (!strncmp(words[i], "out=", 4)) out = fopen(words[i] + 4, "w");
    if (!out) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
