//! Signatures made once, and the public keys they were made under: what a signature of ECDSA costs to check depends on
//! its numbers, and counts are to be the same in every run. The private keys are kept nowhere.
//!
//! All are over `super::body()` at `super::NOW`.

/// SubjectPublicKeyInfo in base64; of the signatures of SendGrid and of the token.
pub(super) const P256: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE+EKVrDZEMHIJbRfSXeRXZ+QVZz/YgGLh8KOubHdszCeR49uOs0cRNa5cRxaXvLvM4SzCXTDoURwVMDUHegla6A==";

/// The same key.
pub(super) const JWK: &str = r#"{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"key-1","x":"-EKVrDZEMHIJbRfSXeRXZ-QVZz_YgGLh8KOubHdszCc","y":"kePbjrNHETWuXEcWl7y7zOEswl0w6FEcFTA1B3oJWug"}"#;

pub(super) const RSA: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAppLEco9ms47T71HB0jFB
IleJXDinODs63Z/u5HQsPZIhIBBzN8tqhrRAEFXL3HoP7QwoOAlqTGZU3IUyfrNA
weafuhv8kbpQy6HiyEPEpeKLAlGDPbNZBysi4MelNMcb0ycDDOU44Vg4ud9EcEIs
iWBLlDlujmy4o/Mw8RCgLRc6WcO9vHkAaIGQ7FwV0TP1umGziO+5qKJjS9VpMEd9
f63h1LMRDZ1BAM52xoq7xBu2smXCv3g03T5qWJnzvimzA5h1WT2gtG4ngUlaSi5I
6dr/Wf8dXl/Pjy3AH3qNtlsxjUjkBmeuQX2Nyttv8W8xs9BG3aAX475ZKS++3YsI
dwIDAQAB
-----END PUBLIC KEY-----
";

/// Over `{timestamp}{body}`.
pub(super) const BY_P256: &str =
    "MEUCICK70dRBLYaWfnBHGGAAq6WM6WGLnduCUIX9kesbEKoPAiEAvglPpptT+qh08UMQnXIfcxxwfkeHgwsDS5dWBQ8xQrw=";

/// Over `{timestamp}\n{NONCE}\n{body}\n`.
pub(super) const BY_RSA: &str = "B64W4ZqzJFPFFmwdQhVtPf0AtoOwBBUWrSRrpSREkmW+I4fYXO2Suq1rltjEDDwly/wmvx2teWk4t8wY2C8+4R+C/JWYT3YSN4CGZ9SKuZ1fSZoCp/uBkHWfkXM97Dno0uqRfvHS5osf96YwOoyLKSu7INPXQq9cYv9MM3asNsjD8g1SYNeMO79XH/eEUHTkWbdLRQwSoS4oiZctKRGkNsl00vJG6jl5InLome2AZTJNnKiIN+prIMsFgHwXSr5AwW3DeisAlSOvAF0vnoqmi+wDSRwht2pSJsE65RH3ybMpbd6W8D7afNnWuzlmradg4K1vgZ0I1mKMeyaLd7qxpw==";

pub(super) const NONCE: &str = "nonce-1";

/// Binds the body by its digest.
pub(super) const TOKEN: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImtleS0xIiwidHlwIjoiSldUIn0.eyJpYXQiOjE3NjAwMDAwMDAsInJlcXVlc3RfYm9keV9zaGEyNTYiOiJmNTZiYzg4NzUxZTc2ZGIyMTZiODc2MWQ4ODQ0MTRjZTlhZTA2MzRkOWMyYjlkMDQ3YmMyOTQyZGQyYmM3ODYxIn0.cNmsEQSCGhJ050iGVhB4MuYz_5A9mNSMqiMl3HV2Tho1ki_bIqThO1ZRuoOX1RQMbKpxOMciaLo3vmn7eQp_1A";
