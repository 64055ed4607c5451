-- Returns key, ms that it still lives (-1: for ever) and content of each key of the queue, all of one moment.
local saved = {}
for _, name in ipairs(redis.call('KEYS', KEYS[1] .. ':*')) do
  table.insert(saved, name)
  table.insert(saved, redis.call('PTTL', name))
  table.insert(saved, redis.call('DUMP', name))
end
return saved
