-- Reserves, and spends what a first delivery spends: all of it or nothing.
--
-- KEYS: mark, replay, events, held, held-events, holders, then one of each limit.
-- ARGV: 3 mark, 4 token, 5 lease in ms, 6 max_claims, 7 '1' where duplicates are taken, 8 number of prints, 9 event or
-- '', the prints, then of each limit its cell in microseconds and its burst.
-- Answers verdict, wait in microseconds, claims held and kept, the server's time, mark.
local FIRST, DUPLICATE, IN_FLIGHT, REPLAY, NOT_TAKEN, LIMITED, FULL = 0, 1, 2, 3, 4, 5, 6
local mark, replay, events, held, held_events, holders = unpack(KEYS, 1, 6)
local token, lease, most, count, event = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[8]), ARGV[9]
local RECLAIM_STEPS, STEPS_WHEN_FULL = 32 + 2 * count, 1000

mark = mark_of(mark, ARGV[3])

local function claims()
  return redis.call('ZCARD', replay) + redis.call('ZCARD', held)
end

local function answer(verdict, wait)
  return { verdict, wait or 0, claims(), told, mark }
end

local function is_known(kept, print)
  local keep_until = redis.call('ZSCORE', kept, print)
  return keep_until and tonumber(keep_until) > now
end

for i = 10, 9 + count do
  if is_known(replay, ARGV[i]) then
    return answer(REPLAY)
  end
end

local function runs(leases, print)
  local lease_until = redis.call('ZSCORE', leases, print)
  return lease_until and tonumber(lease_until) > leased
end

for i = 10, 9 + count do
  if runs(held, ARGV[i]) then
    return answer(IN_FLIGHT)
  end
end
if event ~= '' and runs(held_events, event) then
  return answer(IN_FLIGHT)
end

local is_duplicate = event ~= '' and is_known(events, event)
if is_duplicate and ARGV[7] ~= '1' then
  return answer(NOT_TAKEN)
end

local function reclaim(steps)
  end_leases(held, 'r', holders, steps)
  end_leases(held_events, 'e', holders, steps)
  forget(replay, steps)
  forget(events, steps)
end

if count > 0 or event ~= '' then
  -- What ended with these very prints is written over: it takes no more room.
  local more = count
  for i = 10, 9 + count do
    if redis.call('ZSCORE', held, ARGV[i]) then
      more = more - 1
    end
  end
  local function is_full()
    return claims() + more > most or redis.call('ZCARD', held_events) >= most
  end
  if is_full() then
    reclaim(STEPS_WHEN_FULL)
    more = count
    if is_full() then
      return answer(FULL)
    end
  end
end

-- GCRA: of each limit the time at which its budget is full again. Nothing is written before all have allowed it.
local full_at, wait = {}, 0
for i = 7, #KEYS do
  local at = 10 + count + 2 * (i - 7)
  local cell, burst = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local kept = tonumber(redis.call('GET', KEYS[i]) or 0)
  -- No budget takes longer to fill than from empty; one that would was written before the server's clock was set back.
  full_at[i] = math.max(micros, math.min(kept, micros + cell * burst)) + cell
  local over = full_at[i] - micros - cell * burst
  -- Half a microsecond is what doubles cannot tell apart.
  if over > 0.5 then
    wait = math.max(wait, over)
  end
end
if wait > 0 then
  return answer(LIMITED, math.ceil(wait))
end
for i = 7, #KEYS do
  redis.call('SET', KEYS[i], string.format('%.3f', full_at[i]), 'PX', text(math.ceil((full_at[i] - micros) / 1000) + 1))
end

local lease_until = text(leased + lease)
for i = 10, 9 + count do
  redis.call('ZADD', held, lease_until, ARGV[i])
  redis.call('HSET', holders, 'r' .. ARGV[i], token)
end
if event ~= '' then
  redis.call('ZADD', held_events, lease_until, event)
  redis.call('HSET', holders, 'e' .. event, token)
end
-- Last: a server that is full refuses a script's first write, but for one that frees.
if count > 0 or event ~= '' then
  reclaim(RECLAIM_STEPS)
end
return answer(is_duplicate and DUPLICATE or FIRST)
