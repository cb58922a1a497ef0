//! A KMS of our own for unit tests.
