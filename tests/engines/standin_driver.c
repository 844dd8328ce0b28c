/* A stand-in for NVIDIA's driver, libcuda.so.1, for tests where there is no GPU.
 *
 * One device, whose memory is the host's. Copies and fills are done; kernels are accepted and do nothing, so results
 * mean nothing. What is checked are the rules of captures and of memory: what breaks one fails as it does with the real
 * driver, and is kept for standin_fault(). Only what TensorRT-RTX and this project's device layer call is here; any
 * other function returns CUDA_ERROR_NOT_SUPPORTED.
 *
 * Compile: cc -shared -fPIC -o libcuda.so.1 -Wl,-soname,libcuda.so.1 standin_driver.c standin_tables.c -ldl -lpthread
 * $STANDIN_CAPABILITY is the compute capability that it pretends, 8.9 where it is not set.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef int Result; /* CUresult */
enum {
  OK = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_SUPPORTED = 801,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  CAPTURE_UNMATCHED = 903,
  CAPTURED_EVENT = 907
};

/* What happened */

static struct {
  long launches, captured, graph_launches, copies, captures, blocks, faults;
} counts; /* captured: kernels in captures; copies: fills too; blocks: pieces of memory that are allocated now */
static char last_fault[200];

long standin_count(const char *name) {
#define COUNT(field) \
  if (!strcmp(name, #field)) return counts.field
  COUNT(launches);
  COUNT(captured);
  COUNT(graph_launches);
  COUNT(copies);
  COUNT(captures);
  COUNT(blocks);
  COUNT(faults);
  return -1;
}

const char *standin_fault(void) { return last_fault; }

static Result fault(Result code, const char *what) {
  counts.faults++;
  snprintf(last_fault, sizeof last_fault, "%s", what);
  return code;
}

/* Captures */

typedef struct Event {
  struct timespec time;
  int recorded;
  struct Stream *origin; /* of the capture that it was recorded in, to join other streams to it */
} Event;

typedef struct {
  enum { KERNEL, COPY, FILL, RECORD, CALL } kind;
  void *to;
  const void *from;
  size_t size;
  int value;
  Event *event;
  void (*function)(void *);
} Node;

typedef struct {
  Node *nodes;
  size_t count;
} Graph;

typedef struct Stream {
  enum { IDLE, CAPTURING, INVALID } status;
  Graph *graph;
  struct Stream *origin; /* the stream that its capture began on */
  unsigned long capture; /* number of its capture */
  struct Stream *next;
} Stream;

enum { GLOBAL, THREAD_LOCAL, RELAXED };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Stream default_stream, *streams;
static unsigned long captures_begun;
static __thread Stream *own_capture; /* that this thread began, and not relaxed */
static __thread int interaction;     /* which captures forbid this thread's calls */

static Stream *stream_of(void *handle) { return (uintptr_t)handle <= 2 ? &default_stream : handle; }

static int destroyed(const Stream *stream) {
  const Stream *s = streams;
  while (s && s != stream) s = s->next;
  return !s && stream != &default_stream;
}

/* For calls that a capture of the same thread forbids, on whatever stream. */
static Result forbidden(const char *what) {
  if (!own_capture || interaction == RELAXED) return OK;
  own_capture->status = INVALID;
  return fault(CAPTURE_UNSUPPORTED, what);
}

/* Memory. What was freed stays reserved, so that no address is given twice and a late use is noticed. */

typedef struct Block {
  char *start;
  size_t size;
  int on_host;
  struct Block *next;
} Block;

static char variables[1 << 20]; /* every global variable of every module */
static Block module_memory = {variables, sizeof variables, 0, NULL}, *blocks = &module_memory, *freed;
static size_t used, total = (size_t)8 << 30;

static Block *block_at(Block *list, const void *address) {
  while (list && !((const char *)address >= list->start && (const char *)address < list->start + list->size)) list = list->next;
  return list;
}

static Result allocate(void **address, size_t size, int on_host) {
  Result refused = forbidden("memory allocated in a capture");
  if (refused) return refused;
  if (!size) return INVALID_VALUE;
  if (!on_host && used + size > total) return OUT_OF_MEMORY;
  Block *block = malloc(sizeof *block);
  void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  pthread_mutex_lock(&lock);
  *block = (Block){start, size, on_host, blocks};
  blocks = block;
  used += on_host ? 0 : size;
  counts.blocks++;
  pthread_mutex_unlock(&lock);
  *address = start;
  return OK;
}

static Result release(void *address) {
  Result refused = address ? forbidden("memory freed in a capture") : OK;
  if (refused || !address) return refused;
  pthread_mutex_lock(&lock);
  Block **link = &blocks, *block;
  while (*link && (*link)->start != address) link = &(*link)->next;
  if ((block = *link)) {
    *link = block->next;
    block->next = freed;
    freed = block;
    used -= block->on_host ? 0 : block->size;
    counts.blocks--;
    mmap(block->start, block->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }
  pthread_mutex_unlock(&lock);
  return block ? OK : fault(INVALID_VALUE, "memory freed that is not allocated");
}

Result cuMemAlloc_v2(void **address, size_t size) { return allocate(address, size, 0); }
Result cuMemFree_v2(void *address) { return release(address); }
Result cuMemHostAlloc(void **address, size_t size, unsigned flags) { return allocate(address, size, 1); }
Result cuMemFreeHost(void *address) { return release(address); }
Result cuMemHostGetDevicePointer_v2(void **device, void *host, unsigned flags) { return *device = host, OK; }
Result cuMemGetInfo_v2(size_t *left, size_t *all) { return *left = total - used, *all = total, OK; }

/* Work */

static Result done(Node node) {
  if (node.kind != KERNEL && (block_at(freed, node.to) || block_at(freed, node.from)))
    return fault(INVALID_VALUE, "a copy or fill of freed memory");
  if (node.kind == COPY) memcpy(node.to, node.from, node.size);
  if (node.kind == FILL) memset(node.to, node.value, node.size);
  if (node.kind == CALL) node.function(node.to);
  if (node.kind == RECORD) node.event->recorded = 1, clock_gettime(CLOCK_MONOTONIC, &node.event->time);
  return OK;
}

static Result put(void *handle, Node node) {
  Stream *stream = stream_of(handle);
  if (destroyed(stream)) return fault(INVALID_HANDLE, "work on a destroyed stream");
  if (stream->status == INVALID) return CAPTURE_INVALIDATED;
  if (stream->status == CAPTURING) {
    Graph *graph = stream->graph;
    graph->nodes = realloc(graph->nodes, (graph->count + 1) * sizeof node);
    graph->nodes[graph->count++] = node;
    counts.captured += node.kind == KERNEL;
    return OK;
  }
  counts.launches += node.kind == KERNEL;
  counts.copies += node.kind == COPY || node.kind == FILL;
  return done(node);
}

Result cuMemcpyAsync(void *to, const void *from, size_t size, void *stream) {
  return put(stream, (Node){.kind = COPY, .to = to, .from = from, .size = size});
}
Result cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *s) { return cuMemcpyAsync(to, from, size, s); }
Result cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, void *s) { return cuMemcpyAsync(to, from, size, s); }
Result cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t size, void *s) { return cuMemcpyAsync(to, from, size, s); }
Result cuMemsetD8Async(void *to, unsigned char value, size_t size, void *stream) {
  return put(stream, (Node){.kind = FILL, .to = to, .value = value, .size = size});
}
Result cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
  return put(stream, (Node){.kind = CALL, .to = data, .function = function});
}
Result cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared, void *stream, void **parameters, void **extra) {
  return put(stream, (Node){.kind = KERNEL});
}
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream;
} LaunchConfig; /* as far as it is read */
Result cuLaunchKernelEx(const LaunchConfig *config, void *function, void **parameters, void **extra) {
  return put(config->stream, (Node){.kind = KERNEL});
}

/* Streams */

Result cuStreamCreateWithPriority(Stream **stream, unsigned flags, int priority) {
  *stream = calloc(1, sizeof **stream);
  pthread_mutex_lock(&lock);
  (*stream)->next = streams;
  streams = *stream;
  pthread_mutex_unlock(&lock);
  return OK;
}
Result cuStreamCreate(Stream **stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }

Result cuStreamDestroy_v2(Stream *stream) {
  if (destroyed(stream)) return fault(INVALID_HANDLE, "a stream destroyed twice");
  pthread_mutex_lock(&lock);
  Stream **link = &streams;
  while (*link != stream) link = &(*link)->next;
  *link = stream->next;
  pthread_mutex_unlock(&lock);
  return OK; /* and kept: its address is given to no other */
}

static Result waited(void *handle) {
  Stream *stream = stream_of(handle);
  if (destroyed(stream)) return fault(INVALID_HANDLE, "a destroyed stream waited for");
  if (stream->status == IDLE) return forbidden("a stream waited for in a capture");
  stream->status = INVALID;
  return fault(CAPTURE_UNSUPPORTED, "a stream waited for while it captures");
}
Result cuStreamSynchronize(void *stream) { return waited(stream); }
Result cuStreamQuery(void *stream) { return waited(stream); }
Result cuCtxSynchronize(void) { return forbidden("the device waited for in a capture"); }
Result cuStreamGetPriority(void *stream, int *priority) { return *priority = 0, OK; }
Result cuStreamGetCtx(void *stream, void **context) { return *context = &total, OK; }
Result cuStreamGetGreenCtx(void *stream, void **context) { return *context = NULL, OK; }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = 0;
  return OK;
}

Result cuStreamBeginCapture_v2(void *handle, int mode) {
  Stream *stream = stream_of(handle);
  if (stream == &default_stream || stream->status) return fault(CAPTURE_UNSUPPORTED, "a capture begun where none can");
  stream->status = CAPTURING, stream->origin = stream, stream->capture = ++captures_begun;
  stream->graph = calloc(1, sizeof *stream->graph);
  if (mode != RELAXED) own_capture = stream;
  return OK;
}

Result cuStreamEndCapture(void *handle, Graph **graph) {
  Stream *stream = stream_of(handle);
  *graph = NULL;
  if (!stream->status) return fault(CAPTURE_UNMATCHED, "a capture ended that did not begin");
  int sound = stream->status == CAPTURING;
  if (own_capture == stream) own_capture = NULL;
  for (Stream *s = streams; s; s = s->next)
    if (s->status && s->origin == stream && s != stream) s->status = IDLE; /* those that joined */
  stream->status = IDLE;
  counts.captures += sound;
  if (sound) *graph = stream->graph;
  return sound ? OK : CAPTURE_INVALIDATED;
}

Result cuStreamIsCapturing(void *stream, int *status) { return *status = stream_of(stream)->status, OK; }
Result cuStreamGetCaptureInfo_v3(void *handle, int *status, unsigned long *id, Graph **graph, void *dependencies, void *edges,
                                 size_t *count) {
  Stream *stream = stream_of(handle);
  *status = stream->status;
  if (id) *id = stream->capture;
  if (graph) *graph = stream->graph;
  if (count) *count = 0;
  return OK;
}
Result cuStreamGetCaptureInfo_v2(void *stream, int *status, unsigned long *id, Graph **graph, void *dependencies, size_t *count) {
  return cuStreamGetCaptureInfo_v3(stream, status, id, graph, dependencies, NULL, count);
}
Result cuThreadExchangeStreamCaptureMode(int *mode) {
  int before = interaction;
  interaction = *mode;
  return *mode = before, OK;
}

/* Events */

Result cuEventCreate(Event **event, unsigned flags) { return (*event = calloc(1, sizeof **event)), OK; }
Result cuEventDestroy_v2(Event *event) { return OK; } /* kept, since graphs may set it */
Result cuEventRecordWithFlags(Event *event, void *handle, unsigned external) {
  Stream *stream = stream_of(handle);
  event->origin = stream->status && !external ? stream->origin : NULL;
  return event->origin ? OK : put(handle, (Node){.kind = RECORD, .event = event});
}
Result cuEventRecord(Event *event, void *stream) { return cuEventRecordWithFlags(event, stream, 0); }
Result cuStreamWaitEvent(void *handle, Event *event, unsigned flags) {
  Stream *stream = stream_of(handle), *origin = event->origin;
  if (origin && origin->status == CAPTURING && !stream->status) /* it joins the capture */
    stream->status = CAPTURING, stream->origin = origin, stream->graph = origin->graph, stream->capture = origin->capture;
  return OK;
}
static Result reached(const Event *event) {
  return event->origin ? fault(CAPTURED_EVENT, "an event of a capture waited for") : forbidden("an event waited for in a capture");
}
Result cuEventSynchronize(Event *event) { return reached(event); }
Result cuEventQuery(Event *event) { return reached(event); }
Result cuEventElapsedTime_v2(float *ms, const Event *start, const Event *end) {
  if (!start->recorded || !end->recorded) return INVALID_HANDLE;
  *ms = (end->time.tv_sec - start->time.tv_sec) * 1e3f + (end->time.tv_nsec - start->time.tv_nsec) / 1e6f;
  return OK;
}

/* Graphs */

Result cuGraphInstantiateWithFlags(Graph **executable, const Graph *graph, unsigned long long flags) {
  *executable = malloc(sizeof **executable);
  **executable = (Graph){memcpy(malloc(graph->count * sizeof(Node) + 1), graph->nodes, graph->count * sizeof(Node)), graph->count};
  return OK;
}
Result cuGraphDestroy(Graph *graph) { return free(graph->nodes), free(graph), OK; }
Result cuGraphExecDestroy(Graph *executable) { return cuGraphDestroy(executable); }
Result cuGraphLaunch(const Graph *executable, void *stream) {
  if (stream_of(stream)->status) return fault(CAPTURE_UNSUPPORTED, "a graph launched into a capture");
  counts.graph_launches++;
  for (size_t i = 0; i < executable->count; i++) {
    Result failed = done(executable->nodes[i]);
    if (failed) return failed;
  }
  return OK;
}
/* What a graph keeps alive is never let go. */
Result cuUserObjectCreate(void **object, void *data, void (*destroy)(void *), unsigned count, unsigned flags) {
  return *object = data, OK;
}
Result cuUserObjectRelease(void *object, unsigned count) { return OK; }
Result cuGraphRetainUserObject(Graph *graph, void *object, unsigned count, unsigned flags) { return OK; }

/* Code: one module, one kernel */

Result cuLibraryLoadData(void **library) { return *library = variables, OK; }
Result cuLibraryUnload(void *library) { return OK; }
Result cuLibraryGetKernel(void **kernel) { return *kernel = variables, OK; }
Result cuKernelGetFunction(void **function, void *kernel) { return *function = kernel, OK; }
Result cuKernelSetAttribute(void) { return OK; }
Result cuModuleLoadData(void **module) { return *module = variables, OK; }
Result cuModuleLoadDataEx(void **module) { return *module = variables, OK; }
Result cuModuleUnload(void *module) { return OK; }
Result cuModuleGetFunction(void **function) { return *function = variables, OK; }
Result cuModuleGetGlobal_v2(void **address, size_t *size) {
  if (address) *address = variables;
  if (size) *size = sizeof variables;
  return OK;
}
Result cuModuleGetLoadingMode(int *lazy) { return *lazy = 2, OK; }
Result cuFuncSetAttribute(void) { return OK; }

/* Device and context: one of each */

static __thread void *current;
Result cuInit(unsigned flags) { return OK; }
Result cuDriverGetVersion(int *version) { return *version = 13050, OK; }
Result cuDeviceGetCount(int *count) { return *count = 1, OK; }
Result cuDeviceGet(int *device, int index) { return *device = 0, index ? INVALID_DEVICE : OK; }
Result cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "stand-in"), OK; }
Result cuDeviceTotalMem_v2(size_t *size, int device) { return *size = total, OK; }
Result cuDeviceGetUuid_v2(void *uuid, int device) { return memset(uuid, 1, 16), OK; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
  static const struct {
    int attribute, value;
  } known[] = {
      {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},                        /* threads of a block, its sides */
      {5, 2147483647}, {6, 65535}, {7, 65535},                         /* sides of a grid */
      {8, 49152}, {9, 65536}, {10, 32}, {11, 2147483647}, {12, 65536}, /* shared, constant; warp; pitch; registers */
      {13, 1500000}, {14, 512}, {15, 1}, {16, 58}, {19, 1}, {31, 1},   /* clock, alignment, overlap, processors */
      {36, 9000000}, {37, 256}, {38, 50331648}, {39, 1536}, {40, 2},   /* memory's clock and bus, cache, threads, engines */
      {41, 1}, {78, 1}, {79, 1}, {80, 1}, {90, 1}, {95, 1},            /* one address space, priorities, ... */
      {81, 102400}, {82, 65536}, {87, 64}, {97, 101376}, {106, 24}, {111, 1024},
  };
  const char *pretended = getenv("STANDIN_CAPABILITY");
  int major = 8, minor = 9;
  if (pretended) sscanf(pretended, "%d.%d", &major, &minor);
  *value = attribute == 75 ? major : attribute == 76 ? minor : 0;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i].attribute == attribute) *value = known[i].value;
  return OK;
}
Result cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &total, OK; }
Result cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
Result cuCtxSetCurrent(void *context) { return current = context, OK; }
Result cuCtxGetCurrent(void **context) { return *context = current, OK; }
Result cuCtxPushCurrent_v2(void *context) { return current = context, OK; }
Result cuCtxPopCurrent_v2(void **context) { return context ? (*context = current, OK) : OK; }
Result cuCtxPushCurrent(void *context) { return cuCtxPushCurrent_v2(context); }
Result cuCtxPopCurrent(void **context) { return cuCtxPopCurrent_v2(context); }
Result cuCtxGetDevice(int *device) { return *device = 0, current ? OK : INVALID_CONTEXT; }
Result cuCtxGetDevice_v2(int *device, void *context) { return *device = 0, OK; }
Result cuCtxGetId(void *context, unsigned long long *id) { return *id = 1, OK; }
Result cuCtxGetLimit(size_t *value, int limit) { return *value = 1024, OK; }
Result cuGetErrorName(int code, const char **text) { return *text = "STANDIN_ERROR", OK; }
Result cuGetErrorString(int code, const char **text) { return *text = "an error of the stand-in driver", OK; }
/* Not called, but cuDNN inside TensorRT-RTX refuses a driver without them. */
Result cuLaunchCooperativeKernel(void) { return NOT_SUPPORTED; }
Result cuOccupancyMaxPotentialClusterSize(void) { return NOT_SUPPORTED; }
Result cuKernelGetAttribute(void) { return NOT_SUPPORTED; }
Result cuLibraryLoadFromFile(void) { return NOT_SUPPORTED; }
Result cuLinkCreate(void) { return NOT_SUPPORTED; }
Result cuLinkAddData(void) { return NOT_SUPPORTED; }
Result cuLinkComplete(void) { return NOT_SUPPORTED; }
Result cuLinkDestroy(void) { return NOT_SUPPORTED; }
