//! Nothing: this crate only holds the version of the module that `scripts/modules/kryoptic` builds.
