"""A run of the benchmark with a case that is right and one that is wrong."""

ROW = {"seconds": 0.002, "spread": 0.05, "samples": 9}
RIGHT = {"error": 1e-4, "allowed": 2e-4}
RUN = {
    "format": 1,
    "environment": {
        "date": "2026-01-02",
        "commit": "abc",
        "device": "cpu",
        "device_name": "a processor",
        "python": "3.11",
        "torch": "2.13",
        "threads": 2,
    },
    "cases": [
        {
            "operation": "attention",
            "case": "small",
            "dtype": "float32",
            "unit": "TFLOP/s",
            "amount": 1e9,
            "rows": [
                {"way": "cpu", "kind": "ours", **ROW, **RIGHT},
                {"way": "torch", "kind": "ours", **ROW, **RIGHT, "seconds": 0.003},
                {"way": "gather", "kind": "peer", **ROW, **RIGHT, "seconds": 0.005},
                {"way": "flex", "kind": "peer", "skipped": "not for this size"},
                {"way": "a product", "kind": "limit", **ROW, "seconds": 0.01, "amount": 1e10},
            ],
        },
        {
            "operation": "attention",
            "case": "wrong",
            "dtype": "float32",
            "unit": "TFLOP/s",
            "amount": 1e9,
            "rows": [
                {"way": "cpu", "kind": "ours", "failed": "it errs by 1, more than 0"},
                {"way": "gather", "kind": "peer", **ROW, **RIGHT, "seconds": 0.000005},
            ],
        },
    ],
}
