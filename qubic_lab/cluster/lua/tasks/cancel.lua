-- ARGV: id. Returns the state that the task has then; '' where there is none.
local id = ARGV[2]
local state = redis.call('HGET', key('task', id), 'state')
if state == 'pending' or state == 'processing' then
  state = 'cancelled'
  finish(id, state, 'why', 'somebody cancelled it')
end
return state or ''
