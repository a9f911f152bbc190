-- Adds what a gateway remembers and the store may not: whatever is there stays, and the later time counts.
--
-- KEYS: mark, replay, events, held. ARGV: 3 mark, 4 max_claims, 5 numbers of replay prints, then times and prints in
-- turn, those of replay keys first.
-- Answers 0, 0, claims held and kept, the server's time, mark.
local mark, replay, events, held = unpack(KEYS)
local most, count = tonumber(ARGV[4]), tonumber(ARGV[5])

mark = mark_of(mark, ARGV[3])

for i = 6, #ARGV, 2 do
  if i < 6 + 2 * count then
    redis.call('ZADD', replay, 'GT', ARGV[i], ARGV[i + 1])
  else
    if redis.call('ZCARD', events) >= most and not redis.call('ZSCORE', events, ARGV[i + 1]) then
      redis.call('ZPOPMIN', events)
    end
    redis.call('ZADD', events, 'GT', ARGV[i], ARGV[i + 1])
  end
end
return { 0, 0, redis.call('ZCARD', replay) + redis.call('ZCARD', held), told, mark }
