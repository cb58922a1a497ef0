//! Holds `proto/` to its rules, and `docs/api.md` to `proto/`.
