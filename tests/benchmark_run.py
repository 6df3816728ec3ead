"""A run of the benchmark with a case that is right, one that a peer wins, and one that is wrong."""

ROW = {"seconds": 0.002, "spread": 0.05, "samples": 9, "extra_bytes": 1_500_000}
RIGHT = {"error": 1e-4, "allowed": 2e-4}
CASE = {"operation": "attention", "dtype": "float32", "unit": "TFLOP/s", "amount": 1e9, "least_bytes": 1e7}
ENVIRONMENT = {
    "date": "2026-01-02",
    "commit": "abc",
    "device": "cpu",
    "device_name": "a processor",
    "python": "3.11",
    "torch": "2.13",
    "threads": 2,
    "protocol": "warm",
}
RUN = {
    "format": 2,
    "command": "tiledattn bench --quick",
    "environment": ENVIRONMENT,
    "limits": [
        {
            "name": "matrix product",
            "dtype": "float32",
            "unit": "TFLOP/s",
            "rate": 2.0,
            "spread": 0.01,
            "samples": 9,
            "what": "2048^3",
        },
        {
            "name": "copy",
            "dtype": "float32",
            "unit": "GB/s",
            "rate": 30.0,
            "spread": 0.02,
            "samples": 9,
            "what": "256 MiB",
        },
    ],
    "cases": [
        {
            **CASE,
            "case": "small",
            "rows": [
                {"way": "cpu", "kind": "ours", **ROW, **RIGHT},
                {"way": "torch", "kind": "ours", **ROW, **RIGHT, "seconds": 0.003, "extra_bytes": None},
                {"way": "gather", "kind": "peer", **ROW, **RIGHT, "seconds": 0.005},
                {"way": "flex", "kind": "peer", "skipped": "not for this size"},
                {"way": "no halo", "kind": "bound", **ROW, **RIGHT, "seconds": 0.001},
                {"way": "a product", "kind": "limit", **ROW, "seconds": 0.01, "amount": 1e10},
            ],
        },
        {
            **CASE,
            "case": "lost",
            "rows": [
                {"way": "cpu", "kind": "ours", **ROW, **RIGHT},
                {"way": "gather", "kind": "peer", **ROW, **RIGHT, "seconds": 0.001},
            ],
        },
        {
            **CASE,
            "case": "wrong",
            "rows": [
                {"way": "cpu", "kind": "ours", "failed": "it errs by 1, more than 0"},
                {"way": "gather", "kind": "peer", **ROW, **RIGHT, "seconds": 0.000005},
            ],
        },
    ],
    "scaling": [
        {
            "operation": "attention",
            "against": "canvas area",
            "unit": "tiles",
            "dtype": "float32",
            "points": [
                {"x": 1.0, "seconds": 0.001, "spread": 0.01, "extra_bytes": 0},
                {"x": 4.0, "seconds": 0.004, "spread": 0.01, "extra_bytes": 0, "memory_bytes": 4_000_000},
                {"x": 16.0, "seconds": 0.017, "spread": 0.01, "extra_bytes": 0, "memory_bytes": 16_000_000},
            ],
            "fit_from": 4.0,
            "time_exponent": [1.044, 1.0, 1.088],
            "memory_exponent": [1.0, 1.0, 1.0],
            "work_exponent": 1.0,
            "note": "a note on the fit",
            "command": "tiledattn bench scaling",
            "environment": dict(ENVIRONMENT),
        }
    ],
}
