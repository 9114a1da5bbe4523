// Asks certmill for a certificate: dotnet run PROFILE REQUEST.csr CERTIFICATE.pem (.NET 8, nothing else).
// Written against the documentation of .NET 8; unlike the other examples it is not run by certmill's tests.
using System.Net;
using System.Net.Http.Headers;
using System.Net.Security;
using System.Security.Cryptography.X509Certificates;

string Setting(string name) =>
    Environment.GetEnvironmentVariable($"CERTMILL_CLIENT_{name}") ?? throw new Exception($"set CERTMILL_CLIENT_{name}");

var (profile, csr, output) = (args[0], args[1], args[2]);

// One key for one certificate, kept until the certificate is here: run it again after whatever happened.
var kept = output + ".idempotency-key";
if (!File.Exists(kept)) File.WriteAllText(kept, Guid.NewGuid().ToString());

// By way of PKCS #12, because TLS on Windows takes no key that was only read from PEM.
using var pem = X509Certificate2.CreateFromPemFile(Setting("CERTIFICATE"), Setting("KEY"));
using var own = new X509Certificate2(pem.Export(X509ContentType.Pkcs12));
var trust = new X509ChainPolicy
{
    TrustMode = X509ChainTrustMode.CustomRootTrust,
    RevocationMode = X509RevocationMode.NoCheck,
};
trust.CustomTrustStore.ImportFromPemFile(Setting("CA"));

using var handler = new SocketsHttpHandler
{
    AllowAutoRedirect = false,
    SslOptions = new SslClientAuthenticationOptions
    {
        ClientCertificates = new X509CertificateCollection { own },
        CertificateChainPolicy = trust,
    },
};
using var http = new HttpClient(handler) { Timeout = TimeSpan.FromSeconds(40) };

for (var attempt = 1; attempt <= 6; attempt++)
{
    var pause = TimeSpan.FromSeconds(attempt);
    try
    {
        var uri = $"{Setting("URL")}/v1/certificates?profile={Uri.EscapeDataString(profile)}";
        using var request = new HttpRequestMessage(HttpMethod.Post, uri);
        request.Headers.Add("Idempotency-Key", File.ReadAllText(kept));
        request.Content = new ByteArrayContent(File.ReadAllBytes(csr));
        request.Content.Headers.ContentType = new MediaTypeHeaderValue("application/pkcs10"); // PEM chain out
        using var answer = await http.SendAsync(request);
        var text = await answer.Content.ReadAsStringAsync();
        if (answer.StatusCode == HttpStatusCode.Created)
        {
            File.WriteAllText(output, text);
            File.Delete(kept);
            return 0;
        }
        if ((int)answer.StatusCode is not (429 or 502 or 503 or 504))
        {
            Console.Error.WriteLine(text); // application/problem+json: type, title, detail, field, remedy
            return 1;
        }
        pause = answer.Headers.RetryAfter?.Delta ?? pause; // as long as certmill asks for
    }
    catch (Exception error) when (error is HttpRequestException or TaskCanceledException)
    {
        Console.Error.WriteLine($"no answer: {error.Message}; trying again");
    }
    await Task.Delay(pause);
}
return 75;
