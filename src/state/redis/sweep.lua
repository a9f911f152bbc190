-- Gives up what is over, for a source that went quiet; looks at the store's mark.
--
-- KEYS: mark, replay, events, held, held-events, holders. ARGV: 3 mark, 4 steps.
-- Answers how many were given up, 0, claims held and kept, the server's time, mark.
local mark, replay, events, held, held_events, holders = unpack(KEYS)
local steps = tonumber(ARGV[4])

mark = mark_of(mark, ARGV[3])

local gone = 0
if steps > 0 then
  gone = end_leases(held, 'r', holders, steps)
    + end_leases(held_events, 'e', holders, steps)
    + forget(replay, steps)
    + forget(events, steps)
end
return { gone, 0, redis.call('ZCARD', replay) + redis.call('ZCARD', held), told, mark }
