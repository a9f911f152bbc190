-- Makes a lease last, if all of it is this token's still and it has not ended.
--
-- KEYS: held, held-events, holders. ARGV: 3 token, 4 number of prints, 5 event or '', 6 lease in ms, prints.
-- Answers 1 or 0.
local held, held_events, holders = unpack(KEYS)
local token, count, event = ARGV[3], tonumber(ARGV[4]), ARGV[5]

local function is_ours(leases, kind, print)
  local lease_until = redis.call('ZSCORE', leases, print)
  return lease_until and tonumber(lease_until) > leased and redis.call('HGET', holders, kind .. print) == token
end

for i = 7, 6 + count do
  if not is_ours(held, 'r', ARGV[i]) then
    return 0
  end
end
if event ~= '' and not is_ours(held_events, 'e', event) then
  return 0
end
local lease_until = text(leased + tonumber(ARGV[6]))
for i = 7, 6 + count do
  redis.call('ZADD', held, 'XX', lease_until, ARGV[i])
end
if event ~= '' then
  redis.call('ZADD', held_events, 'XX', lease_until, event)
end
return 1
