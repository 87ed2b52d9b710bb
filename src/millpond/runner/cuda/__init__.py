"""CUDA graphs, buckets, pinned buffers and memory profiling."""
