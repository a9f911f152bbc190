-- Before every script. ARGV[1]: whose clock tells the time; ARGV[2]: the asker's, in milliseconds since 1970.
--
-- `now` judges what is remembered: the earlier of the two clocks, so that neither a gateway nor a server that is ahead
-- makes anybody forget. `leased` judges leases, which several gateways must see end at one moment: the server's alone.
local server = redis.call('TIME')
local micros = server[1] * 1000000 + server[2]
local told = math.floor(micros / 1000)
local now, leased = math.min(tonumber(ARGV[2]), told), told
if ARGV[1] == 'asker' then
  now, leased, micros = tonumber(ARGV[2]), tonumber(ARGV[2]), ARGV[2] * 1000
end

-- Lua's own way to write a number rounds it after fourteen digits.
local function text(number)
  return string.format('%.0f', number)
end

-- The store's mark, made by whoever finds none: one that has changed tells everybody that the store was emptied.
local function mark_of(key, proposed)
  local mark = redis.call('GET', key)
  if not mark then
    redis.call('SET', key, proposed)
    mark = proposed
  end
  return mark
end

-- Both give up what is over in bounded steps. What was remembered stays a second longer, as gateways' clocks do not
-- agree to the millisecond; whoever asks compares the time itself.
local function end_leases(held, kind, holders, steps)
  local over = redis.call('ZRANGEBYSCORE', held, '-inf', text(leased), 'LIMIT', 0, steps)
  if #over > 0 then
    redis.call('ZREM', held, unpack(over))
    for i = 1, #over do
      over[i] = kind .. over[i]
    end
    redis.call('HDEL', holders, unpack(over))
  end
  return #over
end

local function forget(kept, steps)
  local over = redis.call('ZRANGEBYSCORE', kept, '-inf', text(now - 1000), 'LIMIT', 0, steps)
  if #over > 0 then
    redis.call('ZREM', kept, unpack(over))
  end
  return #over
end

