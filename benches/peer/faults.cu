// One planted fault for each tool of compute-sanitizer, so that its silence about other programs means something:
// a tool that reports nothing here does not work on this machine. Its argument is the tool's name.
#include <cstdio>
#include <cstring>

constexpr int N = 64;  // threads of the one block, and elements of each array

// Writes one element past the end of y: [N].
__global__ void memcheck_fault(float* y) { y[threadIdx.x + 1] = 1.0f; }

// Reads x: [N], which nobody has written.
__global__ void initcheck_fault(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }

// Reads what another warp writes, without a barrier between.
__global__ void racecheck_fault(float* y) {
    __shared__ float shared[N];
    shared[threadIdx.x] = float(threadIdx.x);
    y[threadIdx.x] = shared[N - 1 - threadIdx.x];
}

// Half of the last warp does not come to the barrier.
__global__ void synccheck_fault(float* y) {
    if (threadIdx.x < N - 16) {
        __syncthreads();
    }
    y[threadIdx.x] = 1.0f;
}

int main(int count, char** arguments) {
    const char* fault = count > 1 ? arguments[1] : "";
    float *x = nullptr, *y = nullptr;
    cudaMalloc(&x, N * sizeof(float));
    cudaMalloc(&y, N * sizeof(float));
    if (!strcmp(fault, "memcheck")) memcheck_fault<<<1, N>>>(y);
    if (!strcmp(fault, "initcheck")) initcheck_fault<<<1, N>>>(x, y);
    if (!strcmp(fault, "racecheck")) racecheck_fault<<<1, N>>>(y);
    if (!strcmp(fault, "synccheck")) synccheck_fault<<<1, N>>>(y);
    cudaError_t error = cudaDeviceSynchronize();
    printf("%s: %s\n", fault, cudaGetErrorString(error));
    return error != cudaSuccess;
}
