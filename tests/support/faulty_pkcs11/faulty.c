/* A PKCS #11 module for tests: passes every call on to a real module and breaks the calls that a test names.
 *
 * What to break stands in a control file, mapped by every process that loads us, so that a fault takes effect
 * at once in lanes that run already and "the third signature" is counted across all of them.
 * tests/support/faulty_module.py compiles this file and writes the control file; it knows the layout of
 * `struct control`, the numbers of `enum action` and the functions: change them together, and MAGIC with them.
 *
 *   FAULTY_PKCS11_MODULE           the real module; SoftHSM unless set
 *   FAULTY_PKCS11_CONTROL          the control file; no faults without it
 *   FAULTY_PKCS11_SIGN_LATENCY_US  of this process's signatures; wins over the control file's
 *
 * No PKCS #11 headers are needed: the few types that we use are declared here (Cryptoki 2.40, natural alignment).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define DEFAULT_MODULE "/usr/lib/softhsm/libsofthsm2.so"
#define MAGIC 0x31544C46u /* "FLT1" */
#define FUNCTIONS 68
#define RULES 8
#define MAX_SIGNATURE_BYTES 2048
#define NO_SESSION 0ul /* CK_INVALID_HANDLE */
#define CKR_OK 0x00ul
#define CKR_SESSION_HANDLE_INVALID 0xB3ul

typedef unsigned char CK_BYTE;
typedef unsigned long CK_ULONG;
typedef CK_ULONG CK_RV;

struct function_list { /* CK_FUNCTION_LIST; POSIX lets a function's address stand in a void pointer */
    CK_BYTE version[2];
    void *function[FUNCTIONS];
};

/* The functions that are wrapped: place in CK_FUNCTION_LIST (their number in the control file too), name, the
 * session that they are about, parameters, arguments. C_OpenSession and C_Sign are written out further below. */
#define S CK_ULONG session
#define WRAPPED(X)                                                                                             \
    X(0, C_Initialize, NO_SESSION, (void *options), (options))                                                 \
    X(1, C_Finalize, NO_SESSION, (void *reserved), (reserved))                                                 \
    X(4, C_GetSlotList, NO_SESSION, (CK_BYTE present, CK_ULONG *slots, CK_ULONG *count),                       \
      (present, slots, count))                                                                                 \
    X(6, C_GetTokenInfo, NO_SESSION, (CK_ULONG slot, void *info), (slot, info))                                \
    X(9, C_InitToken, NO_SESSION, (CK_ULONG slot, CK_BYTE *pin, CK_ULONG length, CK_BYTE *label),              \
      (slot, pin, length, label))                                                                              \
    X(10, C_InitPIN, session, (S, CK_BYTE *pin, CK_ULONG length), (session, pin, length))                      \
    X(13, C_CloseSession, session, (S), (session))                                                             \
    X(15, C_GetSessionInfo, session, (S, void *info), (session, info))                                         \
    X(18, C_Login, session, (S, CK_ULONG user, CK_BYTE *pin, CK_ULONG length), (session, user, pin, length))   \
    X(19, C_Logout, session, (S), (session))                                                                   \
    X(24, C_GetAttributeValue, session, (S, CK_ULONG object, void *template, CK_ULONG count),                  \
      (session, object, template, count))                                                                      \
    X(26, C_FindObjectsInit, session, (S, void *template, CK_ULONG count), (session, template, count))         \
    X(27, C_FindObjects, session, (S, CK_ULONG *objects, CK_ULONG limit, CK_ULONG *count),                     \
      (session, objects, limit, count))                                                                        \
    X(28, C_FindObjectsFinal, session, (S), (session))                                                         \
    X(42, C_SignInit, session, (S, void *mechanism, CK_ULONG key), (session, mechanism, key))                  \
    X(59, C_GenerateKeyPair, session,                                                                          \
      (S, void *mechanism, void *public_template, CK_ULONG public_count, void *private_template,               \
       CK_ULONG private_count, CK_ULONG *public_key, CK_ULONG *private_key),                                   \
      (session, mechanism, public_template, public_count, private_template, private_count, public_key,          \
       private_key))

#define ORDINAL(number, name, ...) ORDINAL_##name = number,
enum ordinal { WRAPPED(ORDINAL) ORDINAL_C_OpenSession = 12, ORDINAL_C_Sign = 43 };

enum action { PASS, ANSWER, CALL_THEN_ANSWER, HANG, CRASH, FLIP, INVALIDATE };

struct rule {
    uint32_t function;
    uint32_t action;
    uint64_t rv;
    uint64_t delay_us;     /* before the action */
    uint64_t nth;          /* the first call that is hit, counted from 1 */
    uint64_t times;        /* how many calls are hit from there on; 0: all */
    _Atomic uint64_t seen; /* calls since the rule was armed, of all processes */
};

struct control {
    uint32_t magic;
    _Atomic uint32_t armed; /* bit n: rules[n] is complete and holds; only the test writes it */
    _Atomic uint64_t sign_latency_us;
    _Atomic uint64_t calls[FUNCTIONS];
    _Atomic uint64_t hits[FUNCTIONS];
    struct rule rules[RULES];
};

/* What a wrapper is to do, and with which answer. `what` is PASS, ANSWER, CALL_THEN_ANSWER or FLIP. */
struct verdict {
    enum action what;
    CK_RV rv;
};

static struct control no_control; /* so that nothing has to ask whether there is a control file */
static struct control *control = &no_control;
static struct function_list *real, ours;
static long own_sign_latency_us = -1;

/* The session of this process that was invalidated last, and how it answers. Those before it are closed in the real
 * module, which answers CKR_SESSION_HANDLE_INVALID by itself. Not locked: a process that uses a module through
 * python-pkcs11 has one thread (docs/adr/0001). */
static CK_ULONG dead_session = NO_SESSION;
static CK_RV dead_rv;

static int is_dead(CK_ULONG session)
{
    return session != NO_SESSION && session == dead_session;
}

/* Close the session in the real module. If it was the process's last one the token logs the user out and forgets
 * the handles of private objects (PKCS #11 2.40 §5.6), so reopening must log in and look for keys again, as after the
 * loss of a real connection; and C_Login does not answer CKR_USER_ALREADY_LOGGED_IN. */
static void bury(CK_ULONG session, CK_RV rv)
{
    CK_RV (*close_session)(CK_ULONG) = real->function[ORDINAL_C_CloseSession];
    close_session(session);
    dead_session = session;
    dead_rv = rv;
}

static void wait_us(uint64_t duration_us)
{
    struct timespec left = {(time_t)(duration_us / 1000000), (long)(duration_us % 1000000) * 1000};
    if (duration_us == 0)
        return;
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        continue;
}

static void hang(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL); /* a handler must not let the process end more gently than by SIGKILL */
    for (;;)
        pause();
}

static void crash(void)
{
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* no core file of every test run */
    raise(SIGSEGV);
    abort();
}

/* Let every armed rule for the function count this call; copy the first one that is hit, as the test may arm the
 * next fault in its place while this one still takes effect. */
static int find_hit(enum ordinal function, uint32_t armed, struct rule *hit)
{
    int found = 0;
    for (unsigned number = 0; number < RULES; number++) {
        struct rule *rule = &control->rules[number];
        if (!(armed >> number & 1) || rule->function != (uint32_t)function)
            continue;
        uint64_t call = atomic_fetch_add(&rule->seen, 1) + 1;
        if (!found && call >= rule->nth && (rule->times == 0 || call - rule->nth < rule->times)) {
            *hit = *rule;
            found = 1;
        }
    }
    return found;
}

/* Count a call and decide what becomes of it. With nothing armed: one atomic addition, one load. */
static struct verdict judge(enum ordinal function, CK_ULONG session)
{
    struct rule hit = {0};
    atomic_fetch_add_explicit(&control->calls[function], 1, memory_order_relaxed);
    if (is_dead(session)) {
        /* One that lost its objects or its login only can still be closed (in the real module it is already). */
        int closes = function == ORDINAL_C_CloseSession && dead_rv != CKR_SESSION_HANDLE_INVALID;
        atomic_fetch_add(&control->hits[function], 1);
        return (struct verdict){ANSWER, closes ? CKR_OK : dead_rv};
    }
    uint32_t armed = atomic_load_explicit(&control->armed, memory_order_acquire);
    if (armed == 0 || !find_hit(function, armed, &hit))
        return (struct verdict){PASS, CKR_OK};
    atomic_fetch_add(&control->hits[function], 1); /* before it takes effect: we may not come back */
    wait_us(hit.delay_us);
    if (hit.action == HANG)
        hang();
    if (hit.action == CRASH)
        crash();
    if (hit.action == INVALIDATE)
        bury(session, hit.rv);
    return (struct verdict){hit.action == INVALIDATE ? ANSWER : hit.action, hit.rv};
}

/* The wrappers are exported under their own names, because signer_pool/token_init.py calls them through ctypes;
 * the build binds our own references to them (-Bsymbolic), whatever else the process has loaded. */
#define WRAPPER(number, name, session, parameters, arguments)      \
    EXPORT CK_RV name parameters                                   \
    {                                                              \
        CK_RV(*call) parameters = real->function[number];          \
        struct verdict verdict = judge(number, session);           \
        if (verdict.what == ANSWER)                                \
            return verdict.rv;                                     \
        CK_RV rv = call arguments;                                 \
        return verdict.what == CALL_THEN_ANSWER ? verdict.rv : rv; \
    }
WRAPPED(WRAPPER)

EXPORT CK_RV C_OpenSession(CK_ULONG slot, CK_ULONG flags, void *application, void *notify, CK_ULONG *session)
{
    CK_RV (*open_session)(CK_ULONG, CK_ULONG, void *, void *, CK_ULONG *) = real->function[ORDINAL_C_OpenSession];
    struct verdict verdict = judge(ORDINAL_C_OpenSession, NO_SESSION);
    if (verdict.what == ANSWER)
        return verdict.rv;
    CK_RV rv = open_session(slot, flags, application, notify, session);
    if (rv == CKR_OK && *session == dead_session)
        dead_session = NO_SESSION; /* the module gives out numbers again */
    return verdict.what == CALL_THEN_ANSWER ? verdict.rv : rv;
}

EXPORT CK_RV C_Sign(S, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature, CK_ULONG *signature_length)
{
    CK_RV (*sign)(CK_ULONG, CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *) = real->function[ORDINAL_C_Sign];
    if (signature == NULL) /* asks for the length only, as python-pkcs11 does each time: no call that counts */
        return is_dead(session) ? dead_rv : sign(session, data, length, signature, signature_length);
    wait_us(own_sign_latency_us >= 0 ? (uint64_t)own_sign_latency_us : atomic_load(&control->sign_latency_us));
    struct verdict verdict = judge(ORDINAL_C_Sign, session);
    if (verdict.what == ANSWER) {
        /* A C_Sign that fails ends the operation (PKCS #11 2.40 §5.11): so it must end in the real module too, or the
         * next C_SignInit would answer CKR_OPERATION_ACTIVE, which no failed token does. */
        CK_BYTE nowhere[MAX_SIGNATURE_BYTES];
        CK_ULONG nowhere_length = sizeof nowhere;
        sign(session, data, length, nowhere, &nowhere_length);
        return verdict.rv;
    }
    CK_RV rv = sign(session, data, length, signature, signature_length);
    if (verdict.what == FLIP && rv == CKR_OK && *signature_length > 0)
        signature[*signature_length - 1] ^= 1;
    return verdict.what == CALL_THEN_ANSWER ? verdict.rv : rv;
}

EXPORT CK_RV C_GetFunctionList(struct function_list **list)
{
    *list = &ours;
    return CKR_OK;
}

/* A module without its faults would let tests pass that test nothing: rather none at all. */
static void give_up(const char *what, const char *why)
{
    fprintf(stderr, "faulty_pkcs11: %s: %s\n", what, why ? why : "unknown error");
    _exit(70);
}

static void map_control(const char *path)
{
    struct stat status;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0 || fstat(file, &status) != 0)
        give_up(path, "the control file cannot be opened");
    if (status.st_size != (off_t)sizeof(struct control))
        give_up(path, "the control file has the wrong size");
    control = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (control == MAP_FAILED || control->magic != MAGIC)
        give_up(path, "this is no control file");
}

__attribute__((constructor)) static void load(void)
{
    const char *latency = getenv("FAULTY_PKCS11_SIGN_LATENCY_US"), *path = getenv("FAULTY_PKCS11_CONTROL");
    const char *module = getenv("FAULTY_PKCS11_MODULE");
    if (path)
        map_control(path);
    if (latency)
        own_sign_latency_us = atol(latency);
    void *library = dlopen(module ? module : DEFAULT_MODULE, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        give_up("the real module", dlerror());
    CK_RV (*list)(struct function_list **) = dlsym(library, "C_GetFunctionList");
    if (list == NULL || list(&real) != CKR_OK)
        give_up("the real module", "it gives no function list");
    ours = *real;
#define OURS(number, name, ...) ours.function[number] = name;
    WRAPPED(OURS)
    ours.function[ORDINAL_C_OpenSession] = C_OpenSession;
    ours.function[ORDINAL_C_Sign] = C_Sign;
}
