"""Run folders in, static pages out."""

if __name__ != "medbench.reports":
    raise ImportError("import this as medbench.reports: a second copy under another name would share no state with it")
