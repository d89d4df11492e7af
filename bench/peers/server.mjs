// A fastify gateway with the policy of bench/policy.py, as far as its plugins can: JWT (HS256), scope, role, a limit for
// each subject, one route, headers, one log line for each request. bench/peer_gateways.py installs and starts it.
import Fastify from 'fastify'
import proxy from '@fastify/http-proxy'
import jwt from '@fastify/jwt'
import rateLimit from '@fastify/rate-limit'

const env = process.env
const app = Fastify({
  logger: { file: env.BENCH_LOG },
  disableRequestLogging: true,
  keepAliveTimeout: 75_000,
  bodyLimit: 10 * 1024 * 1024
})

await app.register(jwt, {
  secret: env.BENCH_SECRET,
  verify: { algorithms: ['HS256'], allowedIss: env.BENCH_ISSUER, allowedAud: env.BENCH_AUDIENCE, clockTolerance: 30_000, cache: 1000 }
})

// Before anything is routed, so that a client without a token can't tell which paths exist.
app.addHook('onRequest', async (request, reply) => {
  try {
    await request.jwtVerify()
  } catch {
    return reply.code(401).header('WWW-Authenticate', 'Bearer').send({ title: 'Unauthorized' })
  }
})
app.addHook('onSend', async (request, reply) => {
  reply.header('X-Request-ID', request.id)
  reply.header('X-Content-Type-Options', 'nosniff')
  reply.header('Referrer-Policy', 'no-referrer')
  reply.removeHeader('Server')
  reply.removeHeader('X-Powered-By')
})
app.addHook('onResponse', async (request, reply) => {
  request.log.info({
    method: request.method,
    url: request.url,
    status: reply.statusCode,
    ms: reply.elapsedTime,
    subject: request.user?.sub
  })
})

await app.register(async (users) => {
  users.addHook('onRequest', async (request, reply) => {
    const { scope = '', role } = request.user
    if (!scope.split(' ').includes('users.read') || !['user', 'admin'].includes(role)) {
      return reply.code(403).send({ title: 'Forbidden' })
    }
  })
  await users.register(rateLimit, {
    max: Number(env.BENCH_LIMIT),
    timeWindow: 60_000,
    hook: 'preHandler',
    keyGenerator: (request) => request.user.sub
  })
  await users.register(proxy, {
    upstream: `http://127.0.0.1:${env.BENCH_UPSTREAM}`,
    prefix: env.BENCH_PREFIX,
    rewritePrefix: '/',
    replyOptions: {
      rewriteRequestHeaders: (request, headers) => {
        const kept = { ...headers }
        delete kept.authorization
        delete kept['x-debug']
        kept['x-user-id'] = request.user.sub
        kept['x-user-role'] = request.user.role
        kept['x-caller'] = request.user.sub
        kept['x-request-id'] = request.id
        kept['x-forwarded-for'] = request.ip
        return kept
      }
    }
  })
})

await app.listen({ host: '127.0.0.1', port: Number(env.BENCH_PORT) })
process.on('SIGTERM', () => process.exit(0))
