-- Remembers what was reserved. Nothing where somebody else holds a part of it under a lease that runs; repeated, it
-- says yes again, for nobody else holds it then.
--
-- KEYS: mark, replay, events, held, held-events, holders.
-- ARGV: 3 mark, 4 token, 5 keep until, 6 max_claims, 7 keep the event until, 8 number of prints, 9 event or '', prints.
-- Answers verdict, 0, claims held and kept, the server's time, mark.
local YES, LOST = 0, 1
local mark, replay, events, held, held_events, holders = unpack(KEYS, 1, 6)
local token, count, event = ARGV[4], tonumber(ARGV[8]), ARGV[9]

mark = mark_of(mark, ARGV[3])

local function answer(verdict)
  return { verdict, 0, redis.call('ZCARD', replay) + redis.call('ZCARD', held), told, mark }
end

local function is_anothers(leases, kind, print)
  local holder = redis.call('HGET', holders, kind .. print)
  if not holder or holder == token then
    return false
  end
  local lease_until = redis.call('ZSCORE', leases, print)
  return lease_until and tonumber(lease_until) > leased
end

for i = 10, 9 + count do
  if is_anothers(held, 'r', ARGV[i]) then
    return answer(LOST)
  end
end
if event ~= '' and is_anothers(held_events, 'e', event) then
  return answer(LOST)
end

-- Freeing comes first: a server that is full lets a script go on that has begun so, and what was accepted is to be
-- remembered whatever it takes.
for i = 10, 9 + count do
  redis.call('ZREM', held, ARGV[i])
  redis.call('HDEL', holders, 'r' .. ARGV[i])
  redis.call('ZADD', replay, 'GT', ARGV[5], ARGV[i])
end
if event ~= '' then
  redis.call('ZREM', held_events, event)
  redis.call('HDEL', holders, 'e' .. event)
  if redis.call('ZCARD', events) >= tonumber(ARGV[6]) and not redis.call('ZSCORE', events, event) then
    redis.call('ZPOPMIN', events)
  end
  redis.call('ZADD', events, 'GT', ARGV[7], event)
end
return answer(YES)
