import sys

names = ("stdout", "stderr")
for name in names:
    # Code may have closed or removed it. A stream of its own is left there.
    if getattr(getattr(sys, name, None), "closed", True):
        setattr(sys, name, getattr(sys, f"__{name}__"))
    getattr(sys, f"__{name}__").flush()
for name in names:
    stream = getattr(sys, f"__{name}__")
    stream.write(f"{name}\n")
    stream.flush()
