"""Settings of the runtime, convolutions and their lowerings, and native code for CPUs."""
