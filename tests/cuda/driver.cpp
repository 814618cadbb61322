// The part of the CUDA driver's interface that the server uses, over the memory and the threads of this process. Device
// pointers are host pointers with red zones. Work is done when it is asked for, but copies from locked host memory are done as
// late as the order of a stream allows: who writes there too early, or gives it back, is found out.
//
// Environment: EMULATOR_DEVICES of them (1), each with EMULATOR_MEMORY bytes (4 GiB); the device EMULATOR_BREAK_DEVICE (0)
// breaks for good at its launch number EMULATOR_BREAK_AT (0: never).

#include "emulate.h"

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.inc"

// What kernels call their dynamic shared memory; the most that a block may have.
constexpr size_t SHARED_BYTES = 48 * 1024;
float row[SHARED_BYTES / sizeof(float)];
float shared[SHARED_BYTES / sizeof(float)];
Vector<u16> shared_vectors[SHARED_BYTES / sizeof(Vector<u16>)];
void* const dynamic_shared[] = {row, shared, shared_vectors};

using Status = int;
constexpr Status SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500,
                 ILLEGAL_ADDRESS = 700;

namespace {

struct Kernel {
    std::function<void(void**)> call;
};

// Reads each parameter as the kernel's type says.
template <typename... Parameters, size_t... Index>
std::function<void(void**)> unpacked(void (*kernel)(Parameters...), std::index_sequence<Index...>) {
    return [kernel](void** parameters) { kernel(*static_cast<std::decay_t<Parameters>*>(parameters[Index])...); };
}

template <typename... Parameters> Kernel made(void (*kernel)(Parameters...)) {
    return Kernel{unpacked(kernel, std::index_sequence_for<Parameters...>())};
}

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all = {
#define KERNEL(name) {#name, made(name)},
#include "kernels.list"
#undef KERNEL
    };
    return all;
}

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
};

// What a device has of its own. Its context and its streams are pointers to it.
struct Device {
    // From locked memory, not yet done.
    std::vector<Copy> copies;
    size_t held = 0;
    long launches = 0;
    bool broken = false;
};
constexpr int MOST_DEVICES = 8;
Device devices[MOST_DEVICES];
thread_local Device* current = devices;

// Blocks between red zones, which are looked at when memory is given back.
constexpr size_t ZONE = 256;
constexpr unsigned char RED = 0xa5;
struct Block {
    size_t size;
    Device* device;
};
std::map<unsigned char*, Block> blocks;
size_t ceiling = 0;
// Locked host memory.
std::map<const unsigned char*, size_t> locked;
// Streams of several threads take turns.
std::mutex turn;

size_t setting(const char* name, size_t otherwise) {
    const char* text = std::getenv(name);
    return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

// Does what the device has put off. The caller has its turn.
void catch_up(Device* device) {
    for (const Copy& copy : device->copies) std::memcpy(copy.to, copy.from, copy.bytes);
    device->copies.clear();
}

bool is_locked(const void* memory) {
    auto after = locked.upper_bound(static_cast<const unsigned char*>(memory));
    return after != locked.begin() && static_cast<const unsigned char*>(memory) < std::prev(after)->first + std::prev(after)->second;
}

void check(unsigned char* block, size_t size) {
    for (size_t i = 0; i < ZONE; ++i)
        if (block[-1 - ptrdiff_t(i)] != RED || block[size + i] != RED) {
            std::fprintf(stderr, "emulator: a kernel wrote beside a block of %zu bytes\n", size);
            std::abort();
        }
}

}  // namespace

extern "C" {

Status cuInit(unsigned) {
    ceiling = setting("EMULATOR_MEMORY", size_t(4) << 30);
    return SUCCESS;
}
Status cuDriverGetVersion(int* version) { return *version = 12040, SUCCESS; }
Status cuDeviceGetCount(int* count) {
    return *count = min(int(setting("EMULATOR_DEVICES", 1)), MOST_DEVICES), SUCCESS;
}
Status cuDeviceGet(int* device, int ordinal) {
    int count = 0;
    cuDeviceGetCount(&count);
    if (ordinal < 0 || ordinal >= count) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
Status cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, size_t(length), "Emulated"), SUCCESS; }
Status cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = ceiling, SUCCESS; }
// Compute capability 8.0; no memory pools.
Status cuDeviceGetAttribute(int* value, int attribute, int) {
    return *value = attribute == 75 ? int(setting("EMULATOR_MAJOR", 8)) : 0, SUCCESS;
}
Status cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &devices[device], SUCCESS; }
Status cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Status cuCtxGetCurrent(void** context) { return *context = current, SUCCESS; }
Status cuCtxSetCurrent(void* context) { return current = static_cast<Device*>(context), SUCCESS; }
Status cuStreamSynchronize(void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    auto* device = static_cast<Device*>(stream);
    catch_up(device);
    return device->broken ? ILLEGAL_ADDRESS : SUCCESS;
}
Status cuCtxSynchronize() { return cuStreamSynchronize(current); }
Status cuStreamCreate(void** stream, unsigned) { return *stream = current, SUCCESS; }
Status cuStreamDestroy_v2(void*) { return SUCCESS; }
Status cuStreamWaitEvent(void*, void*, unsigned) { return SUCCESS; }
Status cuEventCreate(void** event, unsigned) { return *event = current, SUCCESS; }
Status cuEventRecord(void*, void*) { return SUCCESS; }
Status cuEventSynchronize(void*) { return SUCCESS; }
Status cuEventQuery(void*) { return SUCCESS; }
Status cuEventDestroy_v2(void*) { return SUCCESS; }
Status cuMemGetInfo_v2(size_t* free, size_t* total) {
    const std::lock_guard<std::mutex> mine(turn);
    return *free = ceiling - current->held, *total = ceiling, SUCCESS;
}

Status cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
    if (current->broken) return ILLEGAL_ADDRESS;
    if (bytes == 0) return INVALID_VALUE;
    const std::lock_guard<std::mutex> mine(turn);
    if (bytes > ceiling - current->held) return OUT_OF_MEMORY;
    auto* whole = static_cast<unsigned char*>(std::aligned_alloc(256, (bytes + 2 * ZONE + 255) / 256 * 256));
    std::memset(whole, RED, bytes + 2 * ZONE);
    // Whoever reads what was never written reads NaNs.
    std::memset(whole + ZONE, 0xff, bytes);
    blocks[whole + ZONE] = Block{bytes, current};
    current->held += bytes;
    *pointer = reinterpret_cast<uint64_t>(whole + ZONE);
    return SUCCESS;
}
Status cuMemFree_v2(uint64_t pointer) {
    const std::lock_guard<std::mutex> mine(turn);
    const auto block = blocks.find(reinterpret_cast<unsigned char*>(pointer));
    if (block == blocks.end()) return INVALID_VALUE;
    catch_up(block->second.device);
    check(block->first, block->second.size);
    block->second.device->held -= block->second.size;
    std::free(block->first - ZONE);
    blocks.erase(block);
    return SUCCESS;
}
Status cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    const std::lock_guard<std::mutex> mine(turn);
    *pointer = std::malloc(bytes);
    locked[static_cast<unsigned char*>(*pointer)] = bytes;
    return SUCCESS;
}
Status cuMemFreeHost(void* pointer) {
    const std::lock_guard<std::mutex> mine(turn);
    const auto* begin = static_cast<unsigned char*>(pointer);
    for (const Device& device : devices)
        for (const Copy& copy : device.copies)
            if (copy.from >= begin && copy.from < begin + locked[begin]) {
                std::fprintf(stderr, "emulator: locked memory is given back before a device has read it\n");
                std::abort();
            }
    locked.erase(begin);
    return std::free(pointer), SUCCESS;
}
Status cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    auto* device = static_cast<Device*>(stream);
    device->copies.push_back(Copy{reinterpret_cast<void*>(to), from, bytes});
    if (!is_locked(from)) catch_up(device);
    return SUCCESS;
}
Status cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    auto* device = static_cast<Device*>(stream);
    catch_up(device);
    if (device->broken) return ILLEGAL_ADDRESS;
    return std::memcpy(to, reinterpret_cast<void*>(from), bytes), SUCCESS;
}
Status cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    const std::lock_guard<std::mutex> mine(turn);
    catch_up(static_cast<Device*>(stream));
    return std::memset(reinterpret_cast<void*>(to), value, bytes), SUCCESS;
}

// The module is this library; that the other one assembles is checked by the assembler.
Status cuModuleLoadData(void** module, const void* image) {
    if (!std::strstr(static_cast<const char*>(image), ".version")) return INVALID_VALUE;
    return *module = &kernels(), SUCCESS;
}
Status cuModuleUnload(void*) { return SUCCESS; }
Status cuModuleGetFunction(void** function, void*, const char* name) {
    const auto kernel = kernels().find(name);
    if (kernel == kernels().end()) return NOT_FOUND;
    return *function = &kernel->second, SUCCESS;
}
Status cuFuncSetAttribute(void*, int, int) { return SUCCESS; }

Status cuLaunchKernel(
    void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes,
    void* stream, void** parameters, void**) {
    auto* device = static_cast<Device*>(stream);
    if (device->broken) return ILLEGAL_ADDRESS;
    if (gx * gy * gz == 0 || gy > 65535 || gz > 65535 || bx * by * bz == 0 || bx * by * bz > 1024) return INVALID_VALUE;
    // What a kernel may use without asking for more.
    if (shared_bytes > SHARED_BYTES) return INVALID_VALUE;
    const std::lock_guard<std::mutex> mine(turn);
    catch_up(device);
    ++device->launches;
    if (device == &devices[setting("EMULATOR_BREAK_DEVICE", 0)]
        && size_t(device->launches) == setting("EMULATOR_BREAK_AT", 0)) {
        device->broken = true;
        return SUCCESS;
    }
    const Kernel* kernel = static_cast<Kernel*>(function);
    launch({gx, gy, gz}, {bx, by, bz}, [&] {
        for (void* memory : dynamic_shared) std::memset(memory, 0xff, shared_bytes);
    }, [&] { kernel->call(parameters); });
    return SUCCESS;
}

Status cuGetErrorName(Status status, const char** name) {
    *name = status == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
        : status == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
        : status == INVALID_DEVICE  ? "CUDA_ERROR_INVALID_DEVICE"
                                    : "CUDA_ERROR_OTHER";
    return SUCCESS;
}
Status cuGetErrorString(Status status, const char** text) { return cuGetErrorName(status, text); }

}  // extern "C"
