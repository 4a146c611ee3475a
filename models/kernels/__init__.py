"""The only room that knows backends: settings of the runtime, lowerings, native code for CPUs."""
