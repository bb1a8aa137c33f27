"""The devices that run models: found, each driven by a process of its own, and kept alive."""
