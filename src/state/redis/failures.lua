-- Spends failures that gateways have counted, and tells how long each budget takes until it is full again.
--
-- KEYS: one of each client. ARGV: 3 cell in microseconds, 4 burst, then of each client how many.
-- Answers microseconds, in the order of the keys.
local cell, burst = tonumber(ARGV[3]), tonumber(ARGV[4])
local answer = {}
for i = 1, #KEYS do
  local kept = tonumber(redis.call('GET', KEYS[i]) or 0)
  local full_at = math.min(math.max(micros, kept) + cell * tonumber(ARGV[4 + i]), micros + cell * burst)
  redis.call('SET', KEYS[i], string.format('%.3f', full_at), 'PX', text(math.ceil((full_at - micros) / 1000) + 1))
  answer[i] = math.ceil(full_at - micros)
end
return answer
