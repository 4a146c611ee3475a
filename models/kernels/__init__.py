"""Settings of the runtime, lowerings of layers, and native code for CPUs."""
