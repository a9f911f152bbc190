-- HMAC-SHA256 of the body through libcrypto, compared with the header in constant time.
local ffi = require "ffi"
ffi.cdef[[
typedef struct env_md_st EVP_MD;
const EVP_MD *EVP_sha256(void);
unsigned char *HMAC(const EVP_MD *evp_md, const void *key, int key_len, const unsigned char *d, size_t n,
                    unsigned char *md, unsigned int *md_len);
int CRYPTO_memcmp(const void *a, const void *b, size_t len);
]]
local crypto = ffi.load("crypto.so.3")
local sha256, digest, hex, digits = crypto.EVP_sha256(), ffi.new("unsigned char[32]"), {}, {}
for byte = 0, 255 do hex[byte] = string.format("%02x", byte) end

return function()
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  local sent = ngx.var.http_x_hub_signature_256
  if not body or not sent or #sent ~= 71 then return ngx.exit(401) end
  crypto.HMAC(sha256, "@SECRET@", 32, body, #body, digest, nil)
  for index = 0, 31 do digits[index + 1] = hex[digest[index]] end
  if crypto.CRYPTO_memcmp("sha256=" .. table.concat(digits), sent, 71) ~= 0 then return ngx.exit(401) end
end
