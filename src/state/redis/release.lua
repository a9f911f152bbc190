-- Frees what this token holds, and nothing else.
--
-- KEYS: replay, held, held-events, holders. ARGV: 3 token, 4 number of prints, 5 event or '', prints.
-- Answers 0, 0, claims held and kept, the server's time.
local replay, held, held_events, holders = unpack(KEYS)
local token, count, event = ARGV[3], tonumber(ARGV[4]), ARGV[5]

local function let_go(leases, kind, print)
  if redis.call('HGET', holders, kind .. print) == token then
    redis.call('HDEL', holders, kind .. print)
    redis.call('ZREM', leases, print)
  end
end

for i = 6, 5 + count do
  let_go(held, 'r', ARGV[i])
end
if event ~= '' then
  let_go(held_events, 'e', event)
end
return { 0, 0, redis.call('ZCARD', replay) + redis.call('ZCARD', held), told }
